//! The file `.env`: one `NAME=value` a line, read strictly, since it holds passwords and decides who is let in.
//!
//! No error shows a value. Nothing is replaced in values: `$` before a name is refused where other programs would replace it.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::str::CharIndices;

use super::ConfigError;

/// The longest file that is read, in bytes.
const BYTES_MAX: u64 = 1024 * 1024;

/// The variables in `path`; none if there is no such file.
///
/// # Errors
/// When others may write the file, or it cannot be read or understood. The error names the file, the line and the variable.
pub fn read(path: &Path) -> Result<Option<Vec<(String, String)>>, ConfigError> {
    let refused = |problem: String| ConfigError::new(path.display().to_string(), problem);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(format!("cannot be read: {error}"))),
    };
    // Of the open file: the one behind the path may be another by now.
    let metadata = file.metadata().map_err(|error| refused(format!("cannot be read: {error}")))?;
    check(&metadata).map_err(refused)?;
    let mut bytes = Vec::new();
    file.by_ref()
        .take(BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refused(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(refused(format!("has more than {BYTES_MAX} bytes")));
    }
    let pairs = parse(&bytes).map_err(|Fault { line, variable, problem }| {
        let variable = variable.map_or_else(String::new, |name| format!(": {name}"));
        ConfigError::new(format!("{}, line {line}{variable}", path.display()), problem)
    })?;
    Ok(Some(pairs))
}

/// Whether nobody else can have written what the file says.
fn check(metadata: &Metadata) -> Result<(), String> {
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(format!(
            "belongs to user {}, and this process runs as {user}: take the file over with chown, or remove it",
            metadata.uid()
        ));
    }
    let others_write = metadata.mode() & 0o002 != 0 || (metadata.mode() & 0o020 != 0 && metadata.gid() != group);
    if others_write {
        return Err("can be written by other users: run `chmod go-w` on the file".to_owned());
    }
    Ok(())
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    line: usize,
    variable: Option<String>,
    problem: String,
}

fn parse(bytes: &[u8]) -> Result<Vec<(String, String)>, Fault> {
    // Editors on Windows put a byte order mark before the first line.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| Fault {
        line: bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count(),
        variable: None,
        problem: "is not UTF-8".to_owned(),
    })?;
    let mut pairs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line = 1 + text[..text.len() - rest.len()].matches('\n').count();
        let (entry, behind) = entry(rest).map_err(|(variable, problem)| Fault { line, variable, problem })?;
        pairs.extend(entry);
        rest = behind;
    }
    Ok(pairs)
}

type Entry = Option<(String, String)>;
type EntryFault = (Option<String>, String);

/// The variable in the first line of `text`, if that has one, and what comes behind. A value in quotes may have several lines.
fn entry(text: &str) -> Result<(Entry, &str), EntryFault> {
    let (line, behind) = text.split_once('\n').unwrap_or((text, ""));
    let content = line.trim();
    if content.is_empty() || content.starts_with('#') {
        return Ok((None, behind));
    }
    let start = line.trim_start();
    let start = start.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(start).trim_start();
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    let name = start.split_once('=').map(|(name, _)| name.trim_end()).filter(|name| is_name(name));
    let Some(name) = name else {
        return Err((None, "is not of the form NAME=value".to_owned()));
    };
    let fault = |problem: &str| (Some(name.to_owned()), problem.to_owned());
    // To the end of the text, for values of several lines.
    let value = text.split_once('=').map_or("", |(_, value)| value).trim_start_matches([' ', '\t']);
    let quoted = match value.chars().next() {
        Some('\'') => {
            let inner = &value[1..];
            Some(inner.find('\'').map(|end| (inner[..end].to_owned(), &inner[end + 1..])).ok_or("has no closing '"))
        }
        Some('"') => Some(double_quoted(&value[1..])),
        _ => None,
    };
    if let Some(quoted) = quoted {
        let (value, rest) = quoted.map_err(fault)?;
        let (left, behind) = rest.split_once('\n').unwrap_or((rest, ""));
        if !left.trim().is_empty() && !left.trim_start().starts_with('#') {
            return Err(fault("has something behind its closing quote"));
        }
        return Ok((Some((name.to_owned(), value)), behind));
    }
    let value = value.split_once('\n').map_or(value, |(value, _)| value);
    let comment = if value.starts_with('#') { Some(0) } else { value.find(" #") };
    let value = comment.map_or(value, |comment| &value[..comment]).trim_end();
    if value.char_indices().any(|(at, letter)| letter == '$' && begins_name(&value[at + 1..])) {
        return Err(fault(DOLLAR));
    }
    Ok((Some((name.to_owned(), value.to_owned())), behind))
}

const DOLLAR: &str = "has a $ before a name, and variables are not replaced here: put the value into single quotes if it has a $, or write out what it stands for";

/// Whether other programs would replace what comes behind a `$`.
fn begins_name(behind: &str) -> bool {
    behind.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_' || letter == '{')
}

/// A value up to its closing quote, and what comes behind that.
fn double_quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut letters: CharIndices<'_> = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '$' if begins_name(&text[at + 1..]) => return Err(DOLLAR),
            '\\' => value.push(match letters.next().map(|(_, letter)| letter) {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(letter @ ('"' | '\\' | '$')) => letter,
                _ => return Err("has a \\ that escapes nothing: write \\\\, or use single quotes"),
            }),
            letter => value.push(letter),
        }
    }
    Err("has no closing \"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Vec<(String, String)>, Fault> {
        parse(text.as_bytes())
    }

    #[test]
    fn values_are_taken_as_they_stand() {
        let text = "\u{feff}# a comment\r\nA=1\r\n\nexport B = two words # comment\n  C='it''s'\n"
            .replace("it''s", "a $b #c \"d\" \\e");
        let text =
            format!("{text}D=\"a\\n\\\"b\\\" \\$c\" # comment\nE=\nF=# nothing\nG=a#b$1$\nH='first\nsecond'\nI=last");
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "a $b #c \"d\" \\e"),
            ("D", "a\n\"b\" $c"),
            ("E", ""),
            ("F", ""),
            ("G", "a#b$1$"),
            ("H", "first\nsecond"),
            ("I", "last"),
        ];
        assert_eq!(of(&text), Ok(expected.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()));
        assert_eq!(of(""), Ok(vec![]));
        assert_eq!(of("\n\n# x"), Ok(vec![]));
    }

    #[test]
    fn an_error_names_line_and_variable_and_never_the_value() {
        let cases = [
            ("A=1\nhunter2\n", 2, None, "is not of the form NAME=value"),
            ("A=1\n\n2B=hunter2", 3, None, "is not of the form NAME=value"),
            ("DB PASSWORD=hunter2", 1, None, "is not of the form NAME=value"),
            ("DB_PASSWORD=hunter$ter", 1, Some("DB_PASSWORD"), DOLLAR),
            ("A='1\n2'\nDB_PASSWORD=\"hunter${two}\"", 3, Some("DB_PASSWORD"), DOLLAR),
            ("DB_PASSWORD='hunter2", 1, Some("DB_PASSWORD"), "has no closing '"),
            ("DB_PASSWORD=\"hunter2", 1, Some("DB_PASSWORD"), "has no closing \""),
            ("DB_PASSWORD='hunter'2", 1, Some("DB_PASSWORD"), "has something behind its closing quote"),
        ];
        for (text, line, variable, problem) in cases {
            let fault = of(text).unwrap_err();
            assert_eq!(
                (fault.line, fault.variable.as_deref(), fault.problem.as_str()),
                (line, variable, problem),
                "{text}"
            );
        }
        assert_eq!(parse(b"A=1\nB=\xff").unwrap_err().line, 2);
        let fault = of("A=\"hunter\\2\"").unwrap_err();
        assert!(!fault.problem.contains("hunter"), "{fault:?}");
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(".env");
        assert_eq!(read(&path), Ok(None));
        std::fs::write(&path, "API_AUTH=none\n").expect("written");
        for (mode, good) in [(0o600, true), (0o644, true), (0o664, true), (0o666, false), (0o602, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
            let read = read(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}: {read:?}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod go-w"), "{error}");
            }
        }
        let error = read(folder.path()).unwrap_err();
        assert!(error.problem.contains("is not a file"), "{error}");
    }
}
