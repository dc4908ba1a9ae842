//! What the modules of the library may name.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

fn sources(below: &Path, found: &mut Vec<PathBuf>) {
    for item in std::fs::read_dir(below).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn rumqttc_is_named_in_one_module_alone_and_no_example_is_left_unrun() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    let naming: Vec<_> = files.iter().filter(|path| text(path).contains("rumqttc")).collect();
    assert_eq!(naming, [&root.join("session/mqtt.rs")]);
    let unrun = ["```no_run", "```ignore", "```compile_fail"];
    for path in &files {
        assert!(!unrun.iter().any(|mark| text(path).contains(mark)), "{}", path.display());
    }
}
