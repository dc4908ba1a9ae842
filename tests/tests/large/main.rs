//! Files that go to storage by presigned URL, over the real binary.
//!
//! What must hold whatever the storage is, holds on the embedded one, each claim in a test of its own, and on SeaweedFS, all
//! of them one after the other in one test: one copy of it runs at a time on a machine, and starting it takes seconds.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod client;
mod hostile;
mod parts;
mod single;

use client::Place;
use millpond_tests::{SeaweedFs, Server, until};
use reqwest::Method;

/// Makes a test of each claim on the embedded storage, and one of all on SeaweedFS.
macro_rules! claims {
    ($($file:ident { $($claim:ident,)* })*) => {
        mod embedded {
            use super::{Place, $($file),*};
            $($(
                #[tokio::test]
                async fn $claim() {
                    $file::$claim(&Place::Here).await;
                }
            )*)*
        }

        #[tokio::test]
        async fn the_same_holds_on_seaweedfs() {
            let Some(storage) = SeaweedFs::start() else { return };
            storage.ready().await;
            let place = Place::SeaweedFs(storage);
            $($(
                eprintln!(concat!("on SeaweedFS: ", stringify!($claim)));
                $file::$claim(&place).await;
            )*)*
        }
    };
}

claims! {
    single {
        a_file_that_was_put_counts_at_its_commit_and_reaches_the_processor_as_it_is,
        files_that_are_committed_together_count_together_or_not_at_all,
        what_lies_there_in_place_of_a_file_never_counts_and_the_file_is_asked_for_anew,
        a_grant_that_ends_counts_what_is_whole_and_forgets_the_rest,
        an_aborted_grant_frees_its_id,
        the_command_line_of_a_grant_works_as_pasted,
        a_result_that_was_put_is_committed_by_done,
        a_small_result_that_was_put_is_sent_inline_too,
        a_result_that_is_whole_when_its_grant_ends_is_committed_without_done,
        the_grant_of_a_result_ends_although_its_round_committed_other_bytes,
    }
    parts {
        a_file_in_parts_is_resumed_where_it_was_left_and_counts_once_it_was_read,
        parts_of_another_length_than_was_granted_get_no_url_and_the_answer_says_which_was,
        parts_that_do_not_make_the_declared_file_never_count_and_free_the_id,
        a_part_of_other_bytes_is_found_out_and_the_file_counts_all_the_same,
        what_was_to_count_with_a_file_that_is_another_is_open_again,
        a_verification_goes_on_after_a_kill,
        a_grant_in_parts_that_ends_counts_if_all_are_there_and_is_forgotten_if_not,
        two_connections_that_race_for_one_file_in_parts_send_to_one_object,
        an_aborted_file_in_parts_takes_no_more_of_them,
        as_many_urls_as_fit_the_answer_come_back,
        the_command_lines_of_parts_work_as_pasted,
        a_result_in_parts_is_committed_once_it_was_read,
        a_verification_says_how_far_it_has_come,
    }
    hostile {
        only_the_declared_bytes_get_through_a_grants_url,
        what_the_pool_does_not_take_is_refused_before_anything_is_stored,
        a_grant_is_its_owners_alone,
        a_publish_under_the_id_of_an_open_grant_takes_its_place_or_is_a_conflict,
        two_connections_that_race_for_one_id_make_one_upload,
        what_was_put_survives_a_kill_before_its_commit,
        a_revoked_members_grants_end_with_it,
        while_storage_is_away_a_commit_is_told_to_come_again_and_a_verification_waits_for_it,
    }
}

/// URLs for clients too are signed with such credentials.
#[tokio::test]
async fn credentials_may_come_with_a_session_token_and_it_is_said_when_they_have_ended() {
    let Some(mut storage) = SeaweedFs::start() else { return };
    storage.ready().await;
    storage.keys = storage.issue(Some(3_600));
    let place = Place::SeaweedFs(storage);
    single::a_file_that_was_put_counts_at_its_commit_and_reaches_the_processor_as_it_is(&place).await;
    parts::a_file_in_parts_is_resumed_where_it_was_left_and_counts_once_it_was_read(&place).await;
    parts::a_result_in_parts_is_committed_once_it_was_read(&place).await;
    hostile::only_the_declared_bytes_get_through_a_grants_url(&place).await;

    let Place::SeaweedFs(mut storage) = place else { unreachable!() };
    storage.keys = storage.issue(None);
    let server = Server::with(&storage.settings()).await;
    until("they end, and /readyz says so", async || {
        let (status, found) = server.api().call(Method::GET, "/readyz", None).await;
        status == 503 && found["problems"].to_string().contains("the session token may have ended")
    })
    .await;
    let checked = storage.check(&[]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.code() == Some(2) && said.contains("the session token may have ended"), "{said}");
}
