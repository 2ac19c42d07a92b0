//! How findings are shown.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use anyhow::Result;
use serde_json::json;
use shared::findings::{Finding, Verdict};

/// The worst of them.
pub fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Fine)
}

/// Prints them: what is wrong first, then warnings, then, if asked for, what is fine.
pub fn print(findings: &[Finding], json: bool, verbose: bool) -> Result<()> {
    let text = if json {
        format!("{}\n", json!({ "verdict": worst(findings), "findings": findings }))
    } else {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        describe(findings, verbose, colours)
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn describe(findings: &[Finding], verbose: bool, colours: bool) -> String {
    let mut text = String::new();
    let mut counts = Vec::new();
    for (verdict, word, colour) in
        [(Verdict::Wrong, "wrong", "31"), (Verdict::Warning, "warning", "33"), (Verdict::Fine, "fine", "32")]
    {
        let of_it: Vec<&Finding> = findings.iter().filter(|finding| finding.verdict == verdict).collect();
        counts.push(format!("{} {word}", of_it.len()));
        if verdict == Verdict::Fine && !verbose {
            continue;
        }
        let label = format!("{word:<8}");
        let label = if colours { format!("\x1b[{colour}m{label}\x1b[0m") } else { label };
        for finding in of_it {
            let _ = writeln!(text, "{label} {:<22} {}", finding.check, finding.found);
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "{:31} -> {advice}", "");
            }
        }
    }
    let _ = writeln!(text, "{}", counts.join(", "));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_what_is_fine_only_if_asked_for() {
        let findings = [
            Finding::fine("a", "well"),
            Finding::warning("b", "soon", "do this"),
            Finding::wrong("c", "broken", "do that"),
        ];
        assert_eq!(worst(&findings), Verdict::Wrong);
        let short = describe(&findings, false, false);
        let lines: Vec<&str> = short.lines().map(str::trim_end).collect();
        assert!(lines[0].starts_with("wrong    c") && lines[1].ends_with("-> do that"), "{short}");
        assert!(lines[2].starts_with("warning  b") && lines[4] == "1 wrong, 1 warning, 1 fine", "{short}");
        assert!(describe(&findings, true, false).contains("fine     a"));
    }
}
