//! Headers of tar archives in which the same files are the same bytes.

use std::io;

/// The header of a plain file of `size` bytes that belongs to nobody and is of no time.
///
/// # Errors
/// The path is too long for ustar.
pub(crate) fn header(path: &str, size: u64, mode: u32) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}
