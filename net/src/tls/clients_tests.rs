use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::ring;

use super::*;

pub(in crate::tls) type Issuer = CertifiedIssuer<'static, KeyPair>;

/// An authority; all have the same name, as those of two owners may.
pub(in crate::tls) fn authority() -> Issuer {
    CertifiedIssuer::self_signed(of_an_authority("Fleet CA"), KeyPair::generate().unwrap()).unwrap()
}

fn of_an_authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A certificate with these URIs.
pub(in crate::tls) fn certificate(of: &Issuer, serial: u64, uris: &[&str]) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.not_before = date_time_ymd(2026, 1, 2);
    params.signed_by(&KeyPair::generate().unwrap(), of).unwrap().der().clone()
}

/// A list with one number on it.
pub(in crate::tls) fn revocations(of: &Issuer, serial: u64) -> Vec<u8> {
    revocations_until(of, serial, 2100)
}

/// The same, to be replaced by a newer one at the beginning of that year.
fn revocations_until(of: &Issuer, serial: u64, year: i32) -> Vec<u8> {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2019, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2019, 1, 1),
        next_update: date_time_ymd(year, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(of).unwrap().pem().unwrap().into_bytes()
}

fn load(files: &[(&str, Vec<u8>)]) -> Result<Option<Authorities>, String> {
    let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    Authorities::of(&files, &Arc::new(ring::default_provider()))
}

#[test]
fn a_certificate_names_the_member_in_its_uri_and_only_what_its_own_pools_authority_signed() {
    let (lab, shop) = (authority(), authority());
    let all = load(&[("lab.crt", lab.pem().into_bytes()), ("shop.crt", shop.pem().into_bytes())]);
    let all = all.unwrap().unwrap();
    let good = all.certified(&[certificate(&lab, 1, &["millpond://lab/dev-1"])]).unwrap();
    assert_eq!((good.pool.as_str(), good.member.as_str()), ("lab", "dev-1"));
    assert_eq!(good.issued.to_string(), "2026-01-02T00:00:00.000Z");
    for (signed_by, uris) in [
        // Another pool's authority, though it is trusted in handshakes.
        (&shop, &["millpond://lab/dev-1"][..]),
        (&lab, &["millpond://shop/dev-1"]),
        // A pool without any, names that are none, no name, two names.
        (&lab, &["millpond://yard/dev-1"]),
        (&lab, &["millpond://lab/a/b"]),
        (&lab, &["millpond://lab"]),
        (&lab, &["https://lab/dev-1"]),
        (&lab, &[]),
        (&lab, &["millpond://lab/dev-1", "millpond://lab/dev-2"]),
        (&authority(), &["millpond://lab/dev-1"]),
    ] {
        assert_eq!(all.certified(&[certificate(signed_by, 2, uris)]), None, "{uris:?}");
    }
    assert_eq!(all.certified(&[]), None);
}

#[test]
fn what_an_authority_revoked_names_nobody() {
    let lab = authority();
    let with_list = load(&[("lab.crt", lab.pem().into_bytes()), ("lab.crl", revocations(&lab, 7))]);
    let with_list = with_list.unwrap().unwrap();
    let revoked = certificate(&lab, 7, &["millpond://lab/dev-1"]);
    assert_eq!(with_list.certified(std::slice::from_ref(&revoked)), None);
    assert!(with_list.certified(&[certificate(&lab, 8, &["millpond://lab/dev-1"])]).is_some());
    let without = load(&[("lab.crt", lab.pem().into_bytes())]).unwrap().unwrap();
    assert!(without.certified(&[revoked]).is_some());
}

#[test]
fn a_list_counts_only_where_an_authority_of_that_pool_signed_it() {
    let (lab, namesake) = (authority(), authority());
    let other =
        CertifiedIssuer::self_signed(of_an_authority("Other CA"), KeyPair::generate().unwrap()).unwrap();
    let pem = lab.pem().into_bytes();
    for (list, says) in [
        (revocations(&other, 7), "lab.crl holds a list of CN=Other CA, and no such authority"),
        (revocations(&namesake, 7), "the key of that authority did not sign it"),
    ] {
        // Also where another pool trusts who signed it.
        let files = [
            ("lab.crt", pem.clone()),
            ("lab.crl", list),
            ("shop.crt", [other.pem(), namesake.pem()].concat().into_bytes()),
        ];
        let refused = load(&files).err().unwrap_or_default();
        assert!(refused.contains(says) && refused.contains("CN="), "{refused}");
    }
}

#[test]
fn what_another_pools_authority_of_the_same_name_revoked_is_not_revoked_here() {
    let (lab, shop) = (authority(), authority());
    let of = |authority: &Issuer| authority.pem().into_bytes();
    let files = [("lab.crt", of(&lab)), ("shop.crt", of(&shop)), ("shop.crl", revocations(&shop, 7))];
    let all = load(&files).unwrap().unwrap();
    for (authority, uri, is_good) in
        [(&lab, "millpond://lab/dev-1", true), (&shop, "millpond://shop/dev-1", false)]
    {
        let chain = [certificate(authority, 7, &[uri])];
        assert_eq!(
            (all.certified(&chain).is_some(), all.has_lost(&chain, None)),
            (is_good, !is_good),
            "{uri}"
        );
    }
}

#[test]
fn all_lists_of_a_pool_count_also_several_of_one_name_and_one_that_is_out_of_date() {
    let (old, new) = (authority(), authority());
    let authorities = [old.pem(), new.pem()].concat().into_bytes();
    let lists = [revocations(&old, 1), revocations(&new, 2), revocations_until(&new, 3, 2020)].concat();
    let all = load(&[("lab.crt", authorities), ("lab.crl", lists)]).unwrap().unwrap();
    for (of, serial, is_good) in
        [(&old, 1, false), (&new, 2, false), (&new, 3, false), (&old, 4, true), (&new, 4, true)]
    {
        let chain = [certificate(of, serial, &["millpond://lab/dev-1"])];
        assert_eq!(all.certified(&chain).is_some(), is_good, "{serial}");
        assert_eq!(all.has_lost(&chain, None), !is_good, "{serial}");
    }
    let (due, pool) = all.due().unwrap();
    assert_eq!((due.to_string().as_str(), pool.as_str()), ("2020-01-01T00:00:00Z", "lab"));
}

#[test]
fn what_is_revoked_above_a_certificate_is_revoked_with_it() {
    let lab = authority();
    let mut params = of_an_authority("Line 1");
    params.serial_number = Some(SerialNumber::from(7_u64));
    let line = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &lab).unwrap();
    let chain = [certificate(&line, 1, &["millpond://lab/dev-1"]), line.der().clone()];
    let with = |serial| {
        let files = [("lab.crt", lab.pem().into_bytes()), ("lab.crl", revocations(&lab, serial))];
        load(&files).unwrap().unwrap()
    };
    assert!(with(8).certified(&chain).is_some() && !with(8).has_lost(&chain, None));
    assert!(with(7).certified(&chain).is_none() && with(7).has_lost(&chain, None));
}

#[test]
fn what_an_authority_signed_is_lost_with_it_and_what_only_ran_out_is_not() {
    let lab = authority();
    let other =
        CertifiedIssuer::self_signed(of_an_authority("Other CA"), KeyPair::generate().unwrap()).unwrap();
    let chain = [certificate(&lab, 1, &["millpond://lab/dev-1"])];
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("millpond://lab/dev-2".try_into().unwrap())];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let over = [params.signed_by(&KeyPair::generate().unwrap(), &lab).unwrap().der().clone()];
    // One that is there, one of another name, another one of the same name, both, and none for that pool.
    for (authorities, lost) in [
        (("lab.crt", lab.pem()), false),
        (("lab.crt", other.pem()), true),
        (("lab.crt", authority().pem()), true),
        (("lab.crt", [other.pem(), lab.pem()].concat()), false),
        (("shop.crt", lab.pem()), true),
    ] {
        let (file, pem) = authorities;
        let all = load(&[(file, pem.into_bytes())]).unwrap().unwrap();
        assert_eq!((all.has_lost(&chain, None), all.has_lost(&over, None)), (lost, lost), "{file}");
        assert_eq!((all.certified(&chain).is_some(), all.certified(&over)), (!lost, None), "{file}");
        assert!(all.has_lost(&[], None));
    }
}

#[test]
fn of_what_ran_out_above_a_certificate_the_authority_is_missed_too() {
    let lab = authority();
    let mut params = of_an_authority("Line 1");
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
    let line = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &lab).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI("millpond://lab/dev-1".try_into().unwrap())];
    params.not_before = date_time_ymd(2020, 2, 1);
    let own = params.signed_by(&KeyPair::generate().unwrap(), &line).unwrap().der().clone();
    let chain = [own, line.der().clone()];
    let beside = |authority: &Issuer| load(&[("lab.crt", authority.pem().into_bytes())]).unwrap().unwrap();
    let (there, gone) = (beside(&lab), beside(&authority()));
    assert_eq!((there.certified(&chain), gone.certified(&chain)), (None, None));
    assert_eq!((there.has_lost(&chain, None), gone.has_lost(&chain, None)), (false, true));
}

#[test]
fn the_same_authorities_are_not_asked_again_others_and_every_list_are() {
    let (lab, other) = (authority(), authority());
    let with = |authority: &Issuer, serial| {
        let files = [("lab.crt", authority.pem().into_bytes()), ("lab.crl", revocations(authority, serial))];
        load(&files).unwrap().unwrap()
    };
    let before = with(&lab, 8);
    let chain = [certificate(&lab, 7, &["millpond://lab/dev-1"])];
    assert!(!with(&lab, 9).has_lost(&chain, Some(&before)));
    assert!(with(&lab, 7).has_lost(&chain, Some(&before)));
    assert!(with(&other, 9).has_lost(&chain, Some(&before)));
    // What is said to have been found good is not verified once more.
    let foreign = [certificate(&other, 1, &["millpond://lab/dev-1"])];
    assert!(with(&lab, 9).has_lost(&foreign, None) && !with(&lab, 9).has_lost(&foreign, Some(&before)));
}

#[test]
fn files_that_are_not_what_their_names_say_are_refused() {
    let lab = authority();
    let pem = lab.pem().into_bytes();
    for (files, says) in [
        (vec![("Lab.crt", pem.clone())], "named after no pool"),
        (vec![("lab.crt", b"nothing".to_vec())], "holds no certificate"),
        (vec![("lab.crl", revocations(&lab, 1))], "has no lab.crt"),
        (vec![("lab.crt", pem.clone()), ("lab.crl", pem.clone())], "holds no list"),
    ] {
        let refused = load(&files).err().unwrap_or_default();
        assert!(refused.contains(says), "{refused}");
    }
    assert!(load(&[]).unwrap().is_none());
}

#[test]
fn clients_are_not_told_which_authorities_there_are() {
    let all = load(&[("lab.crt", authority().pem().into_bytes())]).unwrap().unwrap();
    assert!(all.for_handshakes().root_hint_subjects().is_empty());
}
