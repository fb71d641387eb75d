//! Licenses, duplicates and origin of the dependencies, from `cargo tree` and `Cargo.lock`.
//!
//! It checks what `cargo deny` would, by the lists of the same `deny.toml`, but needs neither a network nor that tool.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Checks all dependencies: normal, of build scripts and of tests, on every platform.
pub fn check() -> Result<()> {
    let lists = fs::read_to_string(workspace::root().join("deny.toml")).context("cannot read deny.toml")?;
    let allowed = list(&lists, "licenses", "allow").context("deny.toml has no `allow` under [licenses]")?;
    let may_repeat = list(&lists, "bans", "skip").context("deny.toml has no `skip` under [bans]")?;
    let mut faults = Vec::new();

    let mut tree = workspace::cargo(&["tree", "--locked", "--workspace", "--target", "all"]);
    tree.args(["--edges", "normal,build,dev", "--prefix", "none", "--no-dedupe", "--format", "{p};{l}"]);
    let tree = workspace::read(&mut tree)?;
    // `name vVERSION (path);LICENSE`, once for each way to it.
    let packages: BTreeSet<(&str, &str, &str)> = tree.lines().filter_map(package).collect();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, version, license) in &packages {
        versions.entry(name).or_default().insert(version);
        if !is_allowed(license, &allowed) {
            faults.push(format!("license: {name} {version} is under `{license}`, which deny.toml does not allow"));
        }
    }
    for (name, versions) in &versions {
        let repeats = may_repeat.iter().any(|skip| skip == name);
        let shown = versions.iter().copied().collect::<Vec<_>>().join(", ");
        match (versions.len() > 1, repeats) {
            (true, false) => faults.push(format!("duplicate: {name} in versions {shown}; deny.toml does not skip it")),
            (false, true) => faults.push(format!("duplicate: {name} has one version; deny.toml need not skip it")),
            _ => {}
        }
    }
    for name in may_repeat.iter().filter(|name| !versions.contains_key(name.as_str())) {
        faults.push(format!("duplicate: nothing is called {name}; deny.toml need not skip it"));
    }

    let lock = fs::read_to_string(workspace::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let foreign = lock.lines().filter_map(|line| line.strip_prefix("source = ")).filter(|source| *source != CRATES_IO);
    faults.extend(foreign.map(|source| format!("source: {source} is not crates.io")));

    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    println!("{} packages: licenses, duplicates and sources as deny.toml wants them", packages.len());
    Ok(())
}

const CRATES_IO: &str = "\"registry+https://github.com/rust-lang/crates.io-index\"";

fn package(line: &str) -> Option<(&str, &str, &str)> {
    let (package, license) = line.split_once(';')?;
    let mut words = package.split(' ');
    // The star says that what it depends on was listed before.
    Some((words.next()?, words.next()?, license.trim_end_matches(" (*)")))
}

/// The strings of the array `key` under `[section]`. Enough of TOML for deny.toml, whose arrays hold one entry a line.
fn list(toml: &str, section: &str, key: &str) -> Option<Vec<String>> {
    let mut lines = toml.lines().skip_while(|line| line.trim() != format!("[{section}]")).skip(1);
    let opening = lines.by_ref().take_while(|line| !line.starts_with('[')).any(|line| line == format!("{key} = ["));
    let entries = lines.take_while(|line| line.trim() != "]");
    let strings = entries.filter_map(|line| {
        let line = line.trim();
        // An entry is a string, or a record `{ name = "...", reason = "..." }`.
        let text = line.strip_prefix("{ name = ").unwrap_or(line).strip_prefix('"')?;
        Some(text.split_once('"')?.0.to_owned())
    });
    opening.then(|| strings.collect())
}

/// Whether an SPDX expression (or the older form with slashes) can be satisfied by allowed licenses.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let is_allowed = any_of(&mut rest, allowed);
    is_allowed == Some(true) && rest.is_empty()
}

/// Alternatives; none when the expression is malformed.
fn any_of(words: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let mut is_allowed = all_of(words, allowed)?;
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        is_allowed |= all_of(words, allowed)?;
    }
    Some(is_allowed)
}

/// What binds closer: licenses that hold together.
fn all_of(words: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let mut is_allowed = one_of(words, allowed)?;
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        is_allowed &= one_of(words, allowed)?;
    }
    Some(is_allowed)
}

/// One license, with its exception if it has one, or an expression in parentheses.
fn one_of(words: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let (name, rest) = match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let is_allowed = any_of(words, allowed)?;
            let [")", rest @ ..] = *words else { return None };
            *words = rest;
            return Some(is_allowed);
        }
        [name, "WITH", exception, rest @ ..] => (format!("{name} WITH {exception}"), rest),
        [name, rest @ ..] => ((*name).to_owned(), rest),
        [] => return None,
    };
    *words = rest;
    Some(allowed.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn license_expressions() {
        let allowed = ["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "Apache-2.0 / MIT",
            "GPL-3.0 OR MIT AND Unicode-3.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
            "(GPL-3.0 AND (Zlib OR BSL-1.0)) OR (MIT)",
        ] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in ["", "Apache-2.0", "MIT AND GPL-3.0", "GPL-3.0 OR Zlib AND MIT", "(MIT", "MIT)", "MIT MIT", "MIT OR"]
        {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn lists_of_toml() {
        let toml =
            "[a]\nx = [\n    \"one\", # why\n]\n\n[b]\ny = 1\nx = [\n    { name = \"two\", reason = \"z\" },\n]\n";
        assert_eq!(list(toml, "a", "x").unwrap(), ["one"]);
        assert_eq!(list(toml, "b", "x").unwrap(), ["two"]);
        assert_eq!(list(toml, "a", "y"), None);
        assert_eq!(list(toml, "c", "x"), None);
    }

    #[test]
    fn lines_of_cargo_tree() {
        assert_eq!(package("zip v9.4.1;MIT"), Some(("zip", "v9.4.1", "MIT")));
        assert_eq!(
            package("serde_derive v1.0.1 (proc-macro);MIT OR Apache-2.0"),
            Some(("serde_derive", "v1.0.1", "MIT OR Apache-2.0"))
        );
        assert_eq!(package("a v1.0.0 (/tmp/a);MIT (*)"), Some(("a", "v1.0.0", "MIT")));
        assert_eq!(package(""), None);
    }
}
