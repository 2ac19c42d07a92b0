//! Versions in what programs print.

/// The version in what `java -version` prints, whose first line is like `openjdk version "17.0.15" 2025-04-15`.
#[must_use]
pub fn java(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.contains(" version \""))?;
    let version = line.split('"').nth(1)?;
    java_major(version).map(|_| version.to_owned())
}

/// The major version of `17.0.15`, `21-ea` or, as it was written once, `1.8.0_392`.
#[must_use]
pub fn java_major(version: &str) -> Option<u32> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    match numbers.next()?.parse().ok()? {
        1 => numbers.next()?.parse().ok(),
        major => Some(major),
    }
}

/// The second number of a version such as `go1.24.6` or `Python 3.11.2`, if the first one is `first`.
#[must_use]
pub fn minor(text: &str, first: &str) -> Option<u32> {
    let rest = text.trim().strip_prefix(first)?.strip_prefix('.')?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_java_is_read_from_what_it_prints() {
        let debian = "openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6)";
        assert_eq!(java(debian).as_deref(), Some("17.0.15"));
        let noisy = "Picked up JAVA_TOOL_OPTIONS: -Xmx1g\njava version \"1.8.0_392\"\n";
        assert_eq!(java(noisy).as_deref(), Some("1.8.0_392"));
        assert_eq!(java("openjdk version \"21-ea\" 2023-09-19").as_deref(), Some("21-ea"));
        assert_eq!(java("The operation couldn’t be completed. Unable to locate a Java Runtime."), None);
    }

    #[test]
    fn the_major_version_of_java_is_the_second_number_of_old_ones() {
        assert_eq!(["17.0.15", "21-ea", "1.8.0_392", "x"].map(java_major), [Some(17), Some(21), Some(8), None]);
    }

    #[test]
    fn the_minor_version_of_go_and_python_is_read_from_what_they_print() {
        assert_eq!(
            ["go1.24.6", "go1.26", "go1.9rc1", "", "devel"].map(|text| minor(text, "go1")),
            [Some(24), Some(26), Some(9), None, None]
        );
        assert_eq!(["Python 3.11.2\n", "Python 2.7.18"].map(|text| minor(text, "Python 3")), [Some(11), None]);
    }
}
