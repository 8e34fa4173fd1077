//! How rebuilds differ from what was claimed, as `why --diff` shows it: a line for each file, and what stands where the
//! first difference is. Decides nothing, and believes no text of a server: it is made printable here once more.

use std::fmt::Write;

use indicatif::HumanCount;
use pushgate_formats::{
    StorePath,
    difference::{Counts, Entry, EntryType, FileDifference, Kind, Report, Window},
    review::{DifferenceInfo, Differences},
};

use crate::{api::printable, review::since};

/// Most verifiers named, and widest path that others are lined up with.
const MOST_VERIFIERS: usize = 10;
const WIDEST: usize = 48;
const RED: &str = "\u{1b}[31m";
const GREEN: &str = "\u{1b}[32m";
const PLAIN: &str = "\u{1b}[0m";

/// The answer to `why --diff`. `colour`: whether a terminal shows it.
pub fn differences(path: &StorePath, cache: &str, all: &Differences, now: u64, colour: bool) -> String {
    let mut out = String::new();
    let count = match all.differences.len() {
        0 => "no rebuild is known to differ from a claim".to_owned(),
        1 => "a rebuild differs from a claim".to_owned(),
        count => format!("{count} rebuilds differ from a claim"),
    };
    // writing to a String can't fail, here and below
    let _ = writeln!(out, "{path} in {}: {count}", printable(cache));
    for one in &all.differences {
        out.push('\n');
        difference(&mut out, one, now, colour);
    }
    out
}

fn difference(out: &mut String, one: &DifferenceInfo, now: u64, colour: bool) {
    let DifferenceInfo { claimed, rebuilt, verifiers, at, report, problem, html } = one;
    let named: Vec<_> = verifiers.iter().take(MOST_VERIFIERS).map(|name| printable(name)).collect();
    let more = verifiers.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let _ = writeln!(out, "claimed {claimed}");
    let _ = writeln!(out, "rebuilt {rebuilt} by {}{more}, {}", named.join(", "), since(*at, now));
    match (report, problem) {
        (Some(report), _) => files(out, report, colour),
        (None, Some(problem)) => {
            let _ = writeln!(out, "  what differs can't be told: {}", printable(problem));
        }
        (None, None) => out.push_str("  what differs isn't known yet\n"),
    }
    if *html {
        out.push_str("  a page made by diffoscope is there too\n");
    }
}

fn files(out: &mut String, report: &Report, colour: bool) {
    let Report { identical, counts, files, truncated, omitted } = report;
    if *identical {
        out.push_str("  nothing differs\n");
        return;
    }
    let (different, same) = (HumanCount(counts.different()), HumanCount(counts.same));
    let _ = writeln!(out, "  {different} differ ({}), {same} are the same", kinds(counts));
    let width = files.iter().map(|file| shown(file).chars().count()).filter(|width| *width <= WIDEST).max();
    let width = width.unwrap_or(0);
    for file in files {
        let sign = match file.kind {
            Kind::Added => '+',
            Kind::Removed => '-',
            _ => '~',
        };
        let _ = writeln!(out, "  {sign} {:<width$}  {}", shown(file), printable(&what(file)));
        if let Some(window) = &file.window {
            let Window { offset, claimed, rebuilt, text } = window;
            let (claimed, rebuilt) = (bytes(claimed, *text), bytes(rebuilt, *text));
            side(out, *offset, '-', &claimed, colour.then_some(RED));
            side(out, *offset, '+', &rebuilt, colour.then_some(GREEN));
        }
    }
    if *truncated {
        let _ = writeln!(out, "  and {} more that differ", HumanCount(*omitted));
    }
}

fn side(out: &mut String, offset: u64, sign: char, bytes: &str, colour: Option<&str>) {
    let (on, off) = colour.map_or(("", ""), |colour| (colour, PLAIN));
    let text = format!("{sign} {bytes}");
    let _ = writeln!(out, "    {offset:>8} {on}{}{off}", text.trim_end());
}

/// `1 added, 2 contents`.
fn kinds(counts: &Counts) -> String {
    let Counts { same: _, added, removed, r#type, size, contents, mode, target } = *counts;
    let all = [
        (added, "added"),
        (removed, "missing"),
        (r#type, "of another type"),
        (size, "of another size"),
        (contents, "with other contents"),
        (mode, "of another mode"),
        (target, "with another target"),
    ];
    let words: Vec<_> = all
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{} {word}", HumanCount(count)))
        .collect();
    words.join(", ")
}

/// The path, or a dot for the store path itself: no file has that name.
fn shown(file: &FileDifference) -> String {
    if file.path.is_empty() { ".".to_owned() } else { printable(&file.path) }
}

/// Hexadecimal digits in groups of two bytes.
fn bytes(window: &str, text: bool) -> String {
    let window = printable(window);
    if text {
        return window;
    }
    let digits: Vec<char> = window.chars().collect();
    digits.chunks(4).map(String::from_iter).collect::<Vec<_>>().join(" ")
}

fn what(file: &FileDifference) -> String {
    let (claimed, rebuilt) = (file.claimed.as_ref(), file.rebuilt.as_ref());
    let entry = |side: Option<&Entry>| side.map_or_else(|| "nothing".to_owned(), in_words);
    let executable = |side: Option<&Entry>| side.is_some_and(|entry| entry.executable);
    let size = |side: Option<&Entry>| HumanCount(side.and_then(|entry| entry.size).unwrap_or(0)).to_string();
    let mode = match (executable(claimed), executable(rebuilt)) {
        (true, false) => Some("executable only as claimed"),
        (false, true) => Some("executable only as rebuilt"),
        _ => None,
    };
    let from = file.first_offset.map(|offset| format!("from byte {}", HumanCount(offset)));
    let (what, from) = match file.kind {
        Kind::Added => (format!("only rebuilt: {}", entry(rebuilt)), None),
        Kind::Removed => (format!("only claimed: {}", entry(claimed)), None),
        Kind::Type | Kind::Target => (format!("{}, rebuilt as {}", entry(claimed), entry(rebuilt)), None),
        Kind::Size => (format!("{} bytes, rebuilt {}; differs", size(claimed), size(rebuilt)), from),
        Kind::Contents => (format!("{} bytes; differs", size(claimed)), from),
        Kind::Mode => return mode.unwrap_or("mode").to_owned(),
    };
    let mode = match file.kind {
        Kind::Size | Kind::Contents => mode.map(|mode| format!("; {mode}")),
        _ => None,
    };
    let from = from.map_or_else(String::new, |from| format!(" {from}"));
    format!("{what}{from}{}", mode.unwrap_or_default())
}

/// `program of 12 bytes`.
fn in_words(entry: &Entry) -> String {
    let size = || HumanCount(entry.size.unwrap_or(0));
    match entry.r#type {
        EntryType::Regular if entry.executable => format!("program of {} bytes", size()),
        EntryType::Regular => format!("file of {} bytes", size()),
        EntryType::Symlink => format!("link to {}", entry.target.as_deref().unwrap_or_default()),
        EntryType::Directory => match entry.entries.unwrap_or(0) {
            0 => "empty directory".to_owned(),
            count => format!("directory with {} in it", HumanCount(count)),
        },
    }
}

#[cfg(test)]
mod tests {
    use pushgate_formats::{Sha256, difference::compare, nar::Writer};

    use super::*;

    fn path() -> StorePath {
        StorePath::from_digest(&[1; 20], "tool").unwrap()
    }

    fn info(report: Option<Report>) -> DifferenceInfo {
        DifferenceInfo {
            claimed: Sha256::of(b"claimed"),
            rebuilt: Sha256::of(b"rebuilt"),
            verifiers: vec!["v1".into(), "v2".into()],
            at: 100,
            report,
            problem: None,
            html: false,
        }
    }

    fn of(one: DifferenceInfo, colour: bool) -> String {
        differences(&path(), "second", &Differences { differences: vec![one] }, 160, colour)
    }

    /// What stands below the hashes.
    fn body(one: DifferenceInfo, colour: bool) -> String {
        of(one, colour).lines().skip(4).map(|line| format!("{line}\n")).collect()
    }

    enum Node {
        File(bool, &'static [u8]),
        Link(&'static str),
        Empty,
    }
    use Node::{Empty, File, Link};

    fn nar(entries: &[(&str, Node)]) -> Vec<u8> {
        let mut out = Writer::new(Vec::new());
        out.directory().unwrap();
        for (name, node) in entries {
            out.entry(name.as_bytes()).unwrap();
            match node {
                File(executable, contents) => {
                    out.file_from(*executable, contents.len() as u64, &mut &contents[..]).unwrap();
                }
                Link(target) => out.symlink(target.as_bytes()).unwrap(),
                Empty => {
                    out.directory().unwrap();
                    out.end().unwrap();
                }
            }
        }
        out.end().unwrap();
        out.finish().unwrap()
    }

    /// A report with one of every kind.
    fn report() -> Report {
        let claimed = nar(&[
            ("a.bin", File(false, b"\0\x01\x02\x03\x04")),
            ("build-info", File(false, b"host: kiln\nuser: alice\n")),
            ("gone", Empty),
            ("kind", Link("x")),
            ("link", Link("lib-1")),
            ("mode", File(true, b"x")),
            ("notes", File(false, b"one\ntwo\n")),
            ("same", File(false, b"same")),
        ]);
        let rebuilt = nar(&[
            ("a.bin", File(true, b"\0\x01\x02\xff\x04")),
            ("build-info", File(false, b"host: oven\nuser: alice\n")),
            ("kind", File(false, b"x")),
            ("link", Link("lib-2")),
            ("mode", File(false, b"x")),
            ("new\n\u{1b}[2J", File(true, b"x")),
            ("notes", File(false, b"one\n")),
            ("same", File(false, b"same")),
        ]);
        compare(claimed.as_slice(), rebuilt.as_slice()).unwrap()
    }

    const SHOWN: &str = r"  8 differ (1 added, 1 missing, 1 of another type, 1 of another size, 2 with other contents, 1 of another mode, 1 with another target), 2 are the same
  ~ a.bin           5 bytes; differs from byte 3; executable only as rebuilt
           0 - 0001 0203 04
           0 + 0001 02ff 04
  ~ build-info      23 bytes; differs from byte 6
           0 - host: kiln\nuser: alice\n
           0 + host: oven\nuser: alice\n
  - gone            only claimed: empty directory
  ~ kind            link to x, rebuilt as file of 1 bytes
  ~ link            link to lib-1, rebuilt as link to lib-2
  ~ mode            executable only as claimed
  + new\n\u{1b}[2J  only rebuilt: program of 1 bytes
  ~ notes           8 bytes, rebuilt 4; differs from byte 4
           0 - one\ntwo\n
           0 + one\n
";

    #[test]
    fn every_kind_has_its_line() {
        assert_eq!(body(info(Some(report())), false), SHOWN);
    }

    #[test]
    fn says_who_rebuilt_what() {
        let head: String = of(info(None), false);
        let expected = format!(
            "{} in second: a rebuild differs from a claim\n\nclaimed {}\nrebuilt {} by v1, v2, 1 min ago\n  \
             what differs isn't known yet\n",
            path(),
            Sha256::of(b"claimed"),
            Sha256::of(b"rebuilt"),
        );
        assert_eq!(head, expected);
        let none = differences(&path(), "main", &Differences::default(), 0, true);
        assert_eq!(none, format!("{} in main: no rebuild is known to differ from a claim\n", path()));
    }

    #[test]
    fn only_a_terminal_gets_colours() {
        let plain = body(info(Some(report())), false);
        assert!(!plain.contains('\u{1b}'));
        let coloured = body(info(Some(report())), true);
        assert!(coloured.contains("0 \u{1b}[31m- 0001 0203 04\u{1b}[0m\n"), "{coloured:?}");
        assert!(coloured.contains("0 \u{1b}[32m+ 0001 02ff 04\u{1b}[0m\n"), "{coloured:?}");
        assert_eq!(coloured.replace(RED, "").replace(GREEN, "").replace(PLAIN, ""), plain);
    }

    #[test]
    fn what_is_missing_of_a_report_is_said() {
        let long = Report { truncated: true, omitted: 1234, ..report() };
        assert!(body(info(Some(long)), false).ends_with("\n  and 1,234 more that differ\n"));
        let failed = DifferenceInfo { problem: Some("it is gone".into()), html: true, ..info(None) };
        assert_eq!(
            body(failed, false),
            "  what differs can't be told: it is gone\n  a page made by diffoscope is there too\n"
        );
    }

    #[test]
    fn servers_cannot_write_on_the_terminal() {
        let mut report = report();
        for file in &mut report.files {
            file.path = "a\u{1b}[2J\nb\u{202e}".into();
            for entry in [&mut file.claimed, &mut file.rebuilt].into_iter().flatten() {
                entry.target = Some("\u{9b}target\n".into());
            }
            if let Some(window) = &mut file.window {
                window.claimed = "\u{7}\nx".into();
                window.rebuilt = "\u{feff}\u{1b}]0;x".into();
            }
        }
        let verifiers = (0..12).map(|n| format!("v\r{n}\u{1b}")).collect();
        let one = DifferenceInfo { verifiers, ..info(Some(report)) };
        let failed = DifferenceInfo { problem: Some("\u{1b}c".into()), ..info(None) };
        let all = Differences { differences: vec![one, failed] };
        let text = differences(&path(), "m\u{1b}", &all, 160, false);
        assert!(text.chars().all(|c| c == '\n' || !crate::api::is_hidden(c)), "{text:?}");
        assert!(text.contains("v9 and 2 more, "), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("  ~")).count(), 6);
    }
}
