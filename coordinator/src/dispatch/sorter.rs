//! Lines in the order of their keys, whether or not they fit in memory.
//!
//! Lines gather in memory up to a bound. What is more is written to temporary files, each in order, which are merged when
//! the lines are read. The files lie in the data directory and have no name: nothing of them outlives the process.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write as _};
use std::path::PathBuf;

use super::buffer;

/// Bytes read from a temporary file at a time, and the least of it with very many files.
const READ: usize = 256 << 10;
const READ_MIN: usize = 8 << 10;
/// Bytes of all files' buffers together, about.
const READ_ALL: usize = 8 << 20;
/// Length of a line and of its text key, before them.
const HEAD: usize = 4 + 2 + 4;

/// Lines that come in any order.
pub(super) struct Sorter {
    directory: PathBuf,
    /// Bytes that may gather in memory.
    room: usize,
    records: Vec<u8>,
    places: Vec<Place>,
    files: Vec<File>,
}

/// Where a record is, and the beginning of its key, which mostly decides.
#[derive(Clone, Copy)]
pub(super) struct Place {
    key: (u64, u64),
    at: usize,
}

/// Lines that can be read in order, as often as need be.
pub(super) enum Sorted {
    Memory { records: Vec<u8>, places: Vec<Place> },
    Files(Vec<File>),
}

/// A record: a number and a text, which are its key together, and a line.
struct Record<'a> {
    number: u32,
    text: &'a [u8],
    line: &'a [u8],
}

impl Sorter {
    /// Holds about `room` bytes in memory, and the rest in files in `directory`.
    pub(super) fn new(directory: PathBuf, room: usize, expected: usize) -> Self {
        let records = buffer::with_room(expected.min(room));
        Self { directory, room, records, places: Vec::new(), files: Vec::new() }
    }

    /// Adds the line that `write` appends, under a key that no other line has.
    pub(super) fn add<E>(
        &mut self,
        number: u32,
        text: &str,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let at = self.records.len();
        // Upload ids are 64 bytes at most; a longer text would only sort by its beginning.
        let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
        self.records.extend_from_slice(&number.to_le_bytes());
        self.records.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.records.extend_from_slice(&[0; 4]);
        self.records.extend_from_slice(text);
        let line = self.records.len();
        write(&mut self.records)?;
        let length = u32::try_from(self.records.len() - line).unwrap_or(u32::MAX);
        self.records[at + 6..at + HEAD].copy_from_slice(&length.to_le_bytes());
        self.places.push(Place { key: key(number, text), at });
        Ok(())
    }

    /// Whether it is time to [`Sorter::spill`].
    pub(super) fn is_full(&self) -> bool {
        self.records.len() + self.places.len() * size_of::<Place>() >= self.room
    }

    /// Writes what is in memory to a file.
    pub(super) fn spill(&mut self) -> io::Result<()> {
        sort(&self.records, &mut self.places);
        let mut file = BufWriter::with_capacity(READ, tempfile::tempfile_in(&self.directory)?);
        for place in &self.places {
            file.write_all(whole(&self.records, place.at))?;
        }
        self.files.push(file.into_inner().map_err(io::IntoInnerError::into_error)?);
        self.records.clear();
        self.places.clear();
        Ok(())
    }

    /// The lines in order. Memory is given back where files hold them.
    pub(super) fn finish(mut self) -> io::Result<Sorted> {
        if self.files.is_empty() {
            sort(&self.records, &mut self.places);
            return Ok(Sorted::Memory { records: self.records, places: self.places });
        }
        self.spill()?;
        Ok(Sorted::Files(self.files))
    }
}

impl Sorted {
    /// Passes every line to `each`, in order.
    pub(super) fn each(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Memory { records, places } => {
                places.iter().try_for_each(|place| each(record(records, place.at).line))
            }
            Self::Files(files) => merge(files, each),
        }
    }
}

/// The head of a file that is being merged.
struct Head<'a> {
    file: BufReader<&'a File>,
    key: (u64, u64),
    record: Vec<u8>,
}

impl Head<'_> {
    /// Goes on to the file's next record; false at its end.
    fn advance(&mut self) -> io::Result<bool> {
        self.record.resize(HEAD, 0);
        match self.file.read_exact(&mut self.record) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        let (text, line) = lengths(&self.record);
        self.record.resize(HEAD + text + line, 0);
        self.file.read_exact(&mut self.record[HEAD..])?;
        let record = record(&self.record, 0);
        self.key = key(record.number, record.text);
        Ok(true)
    }
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key).then_with(|| record(&self.record, 0).text.cmp(record(&other.record, 0).text))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head<'_> {}

fn merge(files: &[File], mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let room = (READ_ALL / files.len().max(1)).clamp(READ_MIN, READ);
    let mut heads = BinaryHeap::with_capacity(files.len());
    for mut file in files {
        file.rewind()?;
        let mut head = Head { file: BufReader::with_capacity(room, file), key: (0, 0), record: Vec::new() };
        if head.advance()? {
            heads.push(Reverse(head));
        }
    }
    while let Some(mut first) = heads.peek_mut() {
        each(record(&first.0.record, 0).line)?;
        if !first.0.advance()? {
            PeekMut::pop(first);
        }
    }
    Ok(())
}

fn sort(records: &[u8], places: &mut [Place]) {
    places.sort_unstable_by(|a, b| {
        a.key.cmp(&b.key).then_with(|| record(records, a.at).text.cmp(record(records, b.at).text))
    });
}

/// The number and the first twelve bytes of the text, so that they compare as the whole key does until those are equal.
fn key(number: u32, text: &[u8]) -> (u64, u64) {
    let mut first = [0; 12];
    let length = text.len().min(12);
    first[..length].copy_from_slice(&text[..length]);
    let [a, b, c, d, rest @ ..] = first;
    let high = u64::from(number) << 32 | u64::from(u32::from_be_bytes([a, b, c, d]));
    (high, u64::from_be_bytes(rest))
}

/// Lengths of the text and of the line of the record that begins with `head`.
fn lengths(head: &[u8]) -> (usize, usize) {
    let [_, _, _, _, a, b, c, d, e, f] = *head else { return (0, 0) };
    (usize::from(u16::from_le_bytes([a, b])), u32::from_le_bytes([c, d, e, f]) as usize)
}

fn whole(records: &[u8], at: usize) -> &[u8] {
    let (text, line) = lengths(&records[at..at + HEAD]);
    &records[at..at + HEAD + text + line]
}

fn record(records: &[u8], at: usize) -> Record<'_> {
    let whole = whole(records, at);
    let (text, _) = lengths(&whole[..HEAD]);
    let number = u32::from_le_bytes([whole[0], whole[1], whole[2], whole[3]]);
    Record { number, text: &whole[HEAD..HEAD + text], line: &whole[HEAD + text..] }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(lines: &[(u32, String)], room: usize) -> (usize, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(directory.path().into(), room, 0);
        for (number, text) in lines {
            sorter
                .add(*number, text, |out| {
                    out.extend_from_slice(format!("{number}/{text}").as_bytes());
                    Ok::<_, io::Error>(())
                })
                .unwrap();
            if sorter.is_full() {
                sorter.spill().unwrap();
            }
        }
        let sorted = sorter.finish().unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the files have no name");
        let read = || {
            let mut read = Vec::new();
            let each = |line: &[u8]| {
                read.push(String::from_utf8(line.to_vec()).unwrap());
                Ok(())
            };
            sorted.each(each).unwrap();
            read
        };
        let files = if let Sorted::Files(files) = &sorted { files.len() } else { 0 };
        assert_eq!(read(), read(), "they can be read again");
        (files, read())
    }

    #[test]
    fn what_does_not_fit_in_memory_goes_to_files() {
        let lines: Vec<_> = (0..1000_u32).rev().map(|n| (n % 7, format!("u{n}"))).collect();
        let (files, few) = sorted(&lines, 4_000);
        assert!(files > 5, "{files}");
        assert_eq!(few, sorted(&lines, usize::MAX).1);
        assert_eq!(sorted(&[], 0), (0, Vec::new()));
    }

    proptest! {
        #[test]
        fn lines_come_in_order_of_number_and_text_whatever_the_room(
            keys in proptest::collection::btree_set((0..4_u32, "[a-c._-]{1,20}"), 0..80),
            room in 0..2_000_usize,
            seed in any::<u64>(),
        ) {
            let expected: Vec<String> = keys.iter().map(|(number, text)| format!("{number}/{text}")).collect();
            let mut lines: Vec<_> = keys.into_iter().collect();
            lines.sort_by_key(|(number, text)| {
                text.bytes().fold(seed ^ u64::from(*number), |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3).rotate_left(29)
                })
            });
            prop_assert_eq!(sorted(&lines, room).1, expected);
        }
    }
}
