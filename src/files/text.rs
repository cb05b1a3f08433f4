//! How messages show what stands in a file.

/// How much of a file's own text a message quotes, in bytes.
const MAX_QUOTE: usize = 128;

/// `text` escaped, cut and in quotes.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", escape(text))
}

/// `text` without control characters and the like, cut at 128 bytes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let before = out.len();
        match c {
            '"' => out.push(c),
            c => out.extend(c.escape_debug()),
        }
        if out.len() > MAX_QUOTE {
            out.truncate(before);
            out.push_str("...");
            break;
        }
    }
    out
}

/// A number with a comma between each three digits.
pub(super) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e16_text_is_escaped_and_cut() {
        assert_eq!(quote("a\n\u{1b}[31m\0\u{202e}é"), "'a\\n\\u{1b}[31m\\0\\u{202e}é'");
        assert_eq!(escape(&"x".repeat(128)).len(), 128);
        assert_eq!(escape(&"x".repeat(1000)), "x".repeat(128) + "...");
        assert_eq!(escape(&"é".repeat(1000)), "é".repeat(64) + "...");
        assert!(escape(&"\0".repeat(1000)).len() <= 131);
    }

    #[test]
    fn numbers_have_commas() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (u64::MAX, "18,446,744,073,709,551,615")] {
            assert_eq!(thousands(n), text);
        }
    }
}
