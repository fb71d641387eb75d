//! Reads PTX text: sets launch bounds, and lints for constructs that must not be there.
//!
//! The lints, each with an accept and a reject test below:
//!
//! - *unknown-entry*: an entry that no `kernel!` declares, or a declared one that is missing.
//! - *local-memory*: a `.local` variable. Something could not live in registers, often an array indexed at run time.
//! - *call*: a call or a trap. Everything inlines; what is left can only be a panic.
//! - *generic-access*: a load, store or atomic without a state space. It costs more, and hides which memory is meant.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use anyhow::{Context, Result, bail};

/// Launch bounds that `kernel!` left in a comment.
#[derive(Debug, PartialEq, Eq)]
struct Bounds<'a> {
    name: &'a str,
    max_threads: u32,
    min_blocks: u32,
    cluster_blocks: u32,
}

fn bounds(line: &str) -> Result<Option<Bounds<'_>>> {
    let Some(text) = line.trim().strip_prefix("// launch-bounds ") else { return Ok(None) };
    let [name, max_threads, min_blocks, cluster_blocks] = text.split_whitespace().collect::<Vec<_>>()[..] else {
        bail!("cannot read `{line}`");
    };
    let number = |text: &str| text.parse().with_context(|| format!("cannot read `{line}`"));
    Ok(Some(Bounds {
        name,
        max_threads: number(max_threads)?,
        min_blocks: number(min_blocks)?,
        cluster_blocks: number(cluster_blocks)?,
    }))
}

fn entry_name(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(".entry ")?;
    Some(rest.split(['(', ' ']).next().unwrap_or(rest))
}

/// Names of the entries, in order.
pub fn entries(ptx: &str) -> Vec<&str> {
    ptx.lines().filter_map(entry_name).collect()
}

/// The first architecture with clusters.
const CLUSTER_ARCH: u32 = 90;

/// The number of the architecture that the PTX is for, as in `sm_90` or `sm_90a`.
fn arch(ptx: &str) -> Result<u32> {
    let target = ptx.lines().find_map(|line| line.trim().strip_prefix(".target sm_"));
    let digits = target.unwrap_or("").split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
    digits.parse().context("the PTX has no `.target sm_` line")
}

/// Moves launch bounds from `kernel!`'s comments to directives of the entries.
pub fn set_launch_bounds(ptx: &str) -> Result<String> {
    let mut declared = Vec::new();
    for line in ptx.lines() {
        declared.extend(bounds(line)?);
    }
    let has_clusters = arch(ptx)? >= CLUSTER_ARCH;
    let entries = entries(ptx);
    for name in &entries {
        if !declared.iter().any(|bounds| bounds.name == *name) {
            bail!("unknown-entry: `{name}` is in the PTX, but no `kernel!` declares it");
        }
    }
    for bounds in &declared {
        if !entries.contains(&bounds.name) {
            bail!("unknown-entry: `kernel!` declares `{}`, but the PTX has no such entry", bounds.name);
        }
    }
    let mut text = String::with_capacity(ptx.len());
    let mut current = None;
    for line in ptx.lines() {
        if line.trim().starts_with("// launch-bounds ") {
            continue;
        }
        if let Some(name) = entry_name(line) {
            current = declared.iter().find(|bounds| bounds.name == name);
        }
        if line.trim() == "{"
            && let Some(Bounds { max_threads, min_blocks, cluster_blocks, .. }) = current.take()
        {
            writeln!(text, ".maxntid {max_threads}, 1, 1\n.minnctapersm {min_blocks}")?;
            if *cluster_blocks > 1 && has_clusters {
                writeln!(text, ".explicitcluster\n.reqnctapercluster {cluster_blocks}, 1, 1")?;
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// The first word of an instruction, behind an optional predicate.
fn opcode(line: &str) -> &str {
    let line = line.trim_start().trim_start_matches('{').trim_start();
    let line = if line.starts_with('@') { line.split_once(' ').map_or("", |(_, rest)| rest) } else { line };
    line.split([' ', '\t', ';']).next().unwrap_or("")
}

/// A path of this workspace without the workspace.
fn short(path: &str) -> &str {
    let root = crate::workspace::root().to_string_lossy();
    path.strip_prefix(&*root).map_or(path, |rest| rest.trim_start_matches('/'))
}

/// Applies the lints; returns everything found, with line numbers, and with places in the source where the PTX names
/// them (it does when built with debug information).
pub fn lint(ptx: &str) -> Vec<String> {
    let mut files = HashMap::new();
    for line in ptx.lines() {
        if let Some((number, name)) = line.trim().strip_prefix(".file").and_then(|rest| rest.trim().split_once(' ')) {
            files.insert(number, name.trim_matches(|c: char| c == '"' || c.is_whitespace()));
        }
    }
    let mut found = Vec::new();
    let (mut entry, mut place) = ("", String::new());
    let mut last_call = None;
    let mut local_places = HashSet::from([String::new()]);
    for (at, line) in ptx.lines().enumerate() {
        if let Some(name) = entry_name(line) {
            (entry, place) = (name, String::new());
        }
        if let Some(rest) = line.trim().strip_prefix(".loc\t") {
            // The innermost place in our own sources: of the instruction, or of the call that was inlined to it.
            let words: Vec<&str> = rest.split([' ', '\t', ',']).filter(|word| !word.is_empty()).collect();
            let inlined = words.iter().position(|word| *word == "inlined_at").map_or(&[][..], |at| &words[at + 1..]);
            for words in [&words[..], inlined] {
                if let [file, line, ..] = *words
                    && line != "0"
                {
                    let path = short(files.get(file).unwrap_or(&file));
                    place = format!(" at {path}:{line}");
                    if !path.starts_with('/') {
                        break;
                    }
                }
            }
            continue;
        }
        let mut report =
            |lint: &str| found.push(format!("{lint}: line {}, in `{entry}`{place}: {}", at + 1, line.trim()));
        let code = line.split("//").next().unwrap_or("");
        let opcode = opcode(code);
        let kind = opcode.split('.').next().unwrap_or("");
        // The variable, then each place that uses it, once.
        let is_local = matches!(kind, "ld" | "st") && opcode.split('.').any(|part| part == "local");
        if code.trim_start().starts_with(".local") || is_local && local_places.insert(place.clone()) {
            report("local-memory");
        }
        // A call that does not return is followed by a trap, which says nothing new.
        if kind == "call" || kind == "trap" && last_call.is_none_or(|call| at - call > 8) {
            report("call");
        }
        if kind == "call" {
            last_call = Some(at);
        }
        let has_space = ["global", "shared", "param", "const", "local"]
            .iter()
            .any(|space| opcode.split(['.', ':']).any(|part| part == *space));
        if matches!(kind, "ld" | "ldu" | "st" | "atom" | "red") && !has_space {
            report("generic-access");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
.version 7.8
.target sm_90
// launch-bounds one 256 2 1

.visible .entry one(
\t.param .align 8 .b8 one_param_0[16]
)
{
\t.reg .b32 \t%r<3>;
\tld.param.b64 \t%rd1, [one_param_0];
\t@%p1 ld.shared.b32 %r1, [%r2];
\tst.global.cs.v4.b32 [%rd1], {%r1, %r1, %r1, %r1};
\tatom.acq_rel.gpu.global.add.u32 %r1, [%rd1], %r2;
\tatom.relaxed.cta.shared::cta.add.u32 %r1, [%r2], %r2; // not a call
\tmapa.shared::cluster.u32 %r3, %r2, %r1;
\tst.shared::cluster.v2.b32 [%r3], {%r1, %r1};
\tret;
}
";

    #[test]
    fn bounds_become_directives() {
        let text = set_launch_bounds(GOOD).unwrap();
        assert!(text.contains(")\n.maxntid 256, 1, 1\n.minnctapersm 2\n{\n"), "{text}");
        assert!(!text.contains("launch-bounds"));
        assert_eq!(entries(&text), ["one"]);
    }

    #[test]
    fn clusters_become_directives_where_there_are_clusters() {
        let four = GOOD.replace("one 256 2 1", "one 256 2 4");
        let text = set_launch_bounds(&four).unwrap();
        assert!(text.contains(".minnctapersm 2\n.explicitcluster\n.reqnctapercluster 4, 1, 1\n{\n"), "{text}");
        let newer = set_launch_bounds(&four.replace("sm_90", "sm_100a")).unwrap();
        assert!(newer.contains(".reqnctapercluster 4, 1, 1"), "{newer}");
        let older = set_launch_bounds(&four.replace("sm_90", "sm_75")).unwrap();
        assert!(older.contains(".minnctapersm 2\n{\n"), "{older}");
        assert!(set_launch_bounds(&four.replace(".target", "// target")).is_err());
    }

    #[test]
    fn unknown_entry() {
        let undeclared = GOOD.replace("launch-bounds one", "launch-bounds two");
        assert!(set_launch_bounds(&undeclared).unwrap_err().to_string().starts_with("unknown-entry"));
        let missing = GOOD.replace(".version", "// launch-bounds two 32 1 1\n.version");
        assert!(set_launch_bounds(&missing).unwrap_err().to_string().contains("`two`"));
    }

    #[test]
    fn clean_text_passes() {
        assert_eq!(lint(GOOD), Vec::<String>::new());
    }

    #[test]
    fn places_are_named() {
        let bad = GOOD.replace(
            "\tret;",
            "\t.loc\t1 12 5\n\tcall.uni panic, ();\n\t// begin inline asm\n\ttrap; exit;\n\tret;\n\t.file\t1 \"src/a.rs\"",
        );
        let found = lint(&bad);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("`one` at src/a.rs:12"), "{found:?}");
    }

    #[test]
    fn each_lint_rejects() {
        for (lint_name, line) in [
            ("local-memory", "\t.local .align 8 .b8 \t__local_depot0[272];"),
            ("call", "\tcall.uni _ZN4core9panicking5panic17h0E;"),
            ("call", "\t{ // callseq 0, 0\n\tcall.uni panic_fmt;"),
            ("call", "\t@%p1 trap;"),
            ("generic-access", "\tld.b32 %r1, [%rd1];"),
            ("generic-access", "\tst.v4.b32 [%rd1], {%r1, %r1, %r1, %r1};"),
            ("generic-access", "\t@%p1 atom.relaxed.gpu.add.u32 %r1, [%rd1], 1;"),
            ("generic-access", "\tred.add.u32 [%rd1], 1;"),
        ] {
            let bad = GOOD.replace("\tret;", &format!("{line}\n\tret;"));
            let found = lint(&bad);
            assert_eq!(found.len(), 1, "{line}: {found:?}");
            assert!(found[0].starts_with(lint_name) && found[0].contains("`one`"), "{found:?}");
        }
    }
}
