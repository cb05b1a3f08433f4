//! The header of a safetensors file: a JSON object that gives each tensor's dtype, shape and place in the data.
//!
//! Stricter than the format's own reader, which lets the last of two tensors of one name win and skips keys that
//! it doesn't know: a header is accepted only if there is one way to read it.

use std::fmt;

use serde::de::DeserializeSeed;

use self::json::Reader;
use super::text::{escape, quote, thousands};

mod json;
mod table;

pub use table::Table;

/// The dtypes of whole bytes, with their sizes. F4, `F6_E2M3` and `F6_E3M2` are known to the format only.
const DTYPES: [(&str, u64); 19] = [
    ("BOOL", 1),
    ("U8", 1),
    ("I8", 1),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("F8_E8M0", 1),
    ("F8_E4M3FNUZ", 1),
    ("F8_E5M2FNUZ", 1),
    ("U16", 2),
    ("I16", 2),
    ("F16", 2),
    ("BF16", 2),
    ("U32", 4),
    ("I32", 4),
    ("F32", 4),
    ("U64", 8),
    ("I64", 8),
    ("F64", 8),
    ("C64", 8),
];

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name: any text, so never a file name.
    pub name: Box<str>,
    /// The format's spelling of its dtype.
    pub dtype: &'static str,
    /// Its shape; the product of the axes that aren't 0, in bytes, fits an `i64`.
    pub shape: Box<[u64]>,
    /// Where its bytes begin, counted from the end of the header.
    pub begin: u64,
    /// Where its bytes end.
    pub end: u64,
    /// Its place in the header's text, counted from 0.
    pub record: u32,
}

/// A header that was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The tensors in the order of the data. They cover it without an overlap or a hole.
    pub tensors: Vec<Tensor>,
    /// The file's own metadata, in the order of the text.
    pub metadata: Vec<(String, String)>,
}

/// What sort of error a [`HeaderError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The header is malformed.
    Format,
    /// The header is over a limit.
    Limit,
    /// The header may be right, but needs what isn't implemented.
    Unsupported,
}

/// Why a header was refused. The message doesn't name the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderError {
    /// Its sort.
    pub kind: ErrorKind,
    /// What is wrong, and where; text from the file is escaped and cut.
    pub message: String,
}

impl HeaderError {
    fn new(kind: ErrorKind, message: String) -> Self {
        Self { kind, message }
    }

    fn format(message: String) -> Self {
        Self::new(ErrorKind::Format, message)
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for HeaderError {}

/// Parse `json`, the header's bytes without the length in front, of a file with `data_len` bytes after it.
pub fn parse_header(json: &[u8], data_len: u64, max_tensors: usize) -> Result<Header, HeaderError> {
    if json.first() != Some(&b'{') {
        return Err(HeaderError::format("header must begin with '{'".into()));
    }
    let mut reader = Reader::new(max_tensors);
    let mut parser = serde_json::Deserializer::from_slice(json);
    let parsed = reader.deserialize(&mut parser).and_then(|()| parser.end());
    if let Some(error) = reader.error {
        return Err(error);
    }
    parsed.map_err(|e| HeaderError::format(format!("header is not valid JSON: {}", escape(&e.to_string()))))?;
    let mut header = reader.header;
    check_names(&header.tensors)?;
    check_keys(&header.metadata)?;
    header.tensors.sort_unstable_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    check_cover(&header.tensors, data_len)?;
    Ok(header)
}

/// Refuse two tensors of one name. Sorting takes less memory than a hash table, and no input makes it slow.
fn check_names(tensors: &[Tensor]) -> Result<(), HeaderError> {
    let mut order: Vec<&Tensor> = tensors.iter().collect();
    order.sort_unstable_by(|a, b| (&a.name, a.record).cmp(&(&b.name, b.record)));
    for pair in order.windows(2) {
        if pair[0].name == pair[1].name {
            return Err(HeaderError::format(format!(
                "tensor {} stands twice: record {} at data offset {} and record {} at data offset {}",
                quote(&pair[0].name),
                thousands(pair[0].record.into()),
                thousands(pair[0].begin),
                thousands(pair[1].record.into()),
                thousands(pair[1].begin)
            )));
        }
    }
    Ok(())
}

fn check_keys(metadata: &[(String, String)]) -> Result<(), HeaderError> {
    let mut keys: Vec<&str> = metadata.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(HeaderError::format(format!("__metadata__: key {} stands twice", quote(pair[0])))),
        None => Ok(()),
    }
}

/// Each extent has the size that dtype and shape call for, and together they are all of the data, once.
fn check_cover(tensors: &[Tensor], data_len: u64) -> Result<(), HeaderError> {
    let mut covered = 0;
    for t in tensors {
        let fail = |what: String| Err(HeaderError::format(format!("{}: {what}", place(&t.name, t.record))));
        if t.end < t.begin {
            return fail(format!("data_offsets end {} is before begin {}", thousands(t.end), thousands(t.begin)));
        }
        if t.end > data_len {
            let (end, len) = (thousands(t.end), thousands(data_len));
            return fail(format!("offset+size {end} exceeds data length {len}"));
        }
        let size = byte_size(t)?;
        if t.end - t.begin != size {
            let (size, extent) = (thousands(size), thousands(t.end - t.begin));
            return fail(format!("{} {:?} needs {size} bytes, data_offsets give {extent}", t.dtype, t.shape));
        }
        if t.begin != covered {
            let word = if t.begin < covered { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return fail(format!("data offset {} {word}, expected {}", thousands(t.begin), thousands(covered)));
        }
        covered = t.end;
    }
    if covered != data_len {
        let (covered, len) = (thousands(covered), thousands(data_len));
        return Err(HeaderError::format(format!("tensors end at data offset {covered}, data length is {len}")));
    }
    Ok(())
}

/// Bytes of a tensor. The axes that aren't 0 must fit an `i64` too: `NumPy` can't hold a shape like (0, 2^62, 2^62).
fn byte_size(t: &Tensor) -> Result<u64, HeaderError> {
    let item = DTYPES.iter().find(|(name, _)| *name == t.dtype).map_or(0, |(_, size)| *size);
    let full = t.shape.iter().filter(|n| **n != 0).try_fold(item, |size, n| size.checked_mul(*n));
    match full {
        Some(size) if i64::try_from(size).is_ok() => Ok(if t.shape.contains(&0) { 0 } else { size }),
        _ => Err(HeaderError::format(format!(
            "{}: {} {:?} has more than 2^63 - 1 bytes",
            place(&t.name, t.record),
            t.dtype,
            t.shape
        ))),
    }
}

/// `tensor 'name' (record 1,234)`.
fn place(name: &str, record: u32) -> String {
    format!("tensor {} (record {})", quote(name), thousands(record.into()))
}

#[cfg(test)]
mod tests {
    use super::ErrorKind::{Format, Limit, Unsupported};
    use super::*;

    fn parse(json: &str, data_len: u64) -> Result<Header, HeaderError> {
        parse_header(json.as_bytes(), data_len, 1_000_000)
    }

    /// The error that `json` must give: its kind, and a part of its message.
    fn refused(json: &str, data_len: u64, kind: ErrorKind, part: &str) {
        let error = parse(json, data_len).expect_err(json);
        assert_eq!(error.kind, kind, "{json}: {error}");
        assert!(error.message.contains(part), "{json}: {error}");
    }

    fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    #[test]
    fn reads_what_the_format_allows() {
        let json = r#"{"b":{"data_offsets":[4,16],"shape":[3,2],"dtype":"BF16"},
            "__metadata__":{"format":"pt","a\n":"\u00e9"},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "e":{"dtype":"I64","shape":[0,5],"data_offsets":[4,4]} }   "#;
        let header = parse(json, 16).unwrap();
        let names: Vec<&str> = header.tensors.iter().map(|t| &*t.name).collect();
        assert_eq!(names, ["a", "e", "b"]);
        assert_eq!(*header.tensors[2].shape, [3, 2]);
        assert_eq!((header.tensors[2].begin, header.tensors[2].end, header.tensors[2].record), (4, 16, 0));
        let metadata = [("format", "pt"), ("a\n", "é")].map(|(k, v)| (k.to_string(), v.to_string()));
        assert_eq!(header.metadata, metadata);
        assert_eq!(parse("{}", 0), Ok(Header::default()));
        assert_eq!(parse(r#"{"__metadata__":{}}"#, 0), Ok(Header::default()));
        for (dtype, size) in DTYPES {
            parse(&format!(r#"{{"a":{}}}"#, entry(dtype, "[1,3]", 0, 3 * size)), 3 * size).unwrap();
        }
    }

    #[test]
    fn e2_extent_against_the_length() {
        let json = format!(r#"{{"blk.0.w":{}}}"#, entry("U8", "[9000000]", 0, 9_000_000));
        let what = "tensor 'blk.0.w' (record 0): offset+size 9,000,000 exceeds data length 8,500,000";
        refused(&json, 8_500_000, Format, what);
        refused(&format!(r#"{{"a":{}}}"#, entry("U8", "[4]", 8, 4)), 8, Format, "end 4 is before begin 8");
        refused(&format!(r#"{{"a":{}}}"#, entry("U8", "[5]", 0, 4)), 4, Format, "needs 5 bytes, data_offsets give 4");
    }

    #[test]
    fn e3_sizes_do_not_overflow() {
        for k in 1..=64 {
            let edges = [format!("[{}]", u64::MAX - k + 1), format!("[{},2]", (1u64 << 63) - k + 1)];
            for shape in edges {
                refused(&format!(r#"{{"a":{}}}"#, entry("F32", &shape, 0, 0)), 0, Format, "more than 2^63");
            }
        }
        // These wrap to 0 and to 8 bytes in 64 bits.
        refused(&format!(r#"{{"a":{}}}"#, entry("F32", "[4294967296,4294967296]", 0, 0)), 0, Format, "2^63");
        refused(&format!(r#"{{"a":{}}}"#, entry("F32", "[4611686018427387906]", 0, 8)), 8, Format, "2^63");
        refused(&format!(r#"{{"a":{}}}"#, entry("U8", "[18446744073709551615]", 0, u64::MAX)), 8, Format, "exceeds");
        refused(r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]}}"#, 0, Format, "JSON");
    }

    #[test]
    fn a12_zero_size_shapes() {
        parse(&format!(r#"{{"a":{}}}"#, entry("U8", "[0,4611686018427387904]", 0, 0)), 0).unwrap();
        refused(&format!(r#"{{"a":{}}}"#, entry("F32", "[0,4611686018427387904]", 0, 0)), 0, Format, "2^63");
    }

    #[test]
    fn e6_too_many_tensors_is_a_limit() {
        let entries: Vec<String> = (0..4).map(|i| format!(r#""{i}":{}"#, entry("U8", "[0]", 0, 0))).collect();
        let json = format!("{{{}}}", entries.join(","));
        assert!(parse_header(json.as_bytes(), 0, 4).is_ok());
        let error = parse_header(json.as_bytes(), 0, 3).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (Limit, "more than 3 tensors"));
    }

    #[test]
    fn e7_duplicates() {
        let (a, b) = (entry("U8", "[1234]", 0, 1234), entry("U8", "[2]", 1234, 1236));
        let what = "tensor 'x' stands twice: record 0 at data offset 0 and record 1 at data offset 1,234";
        refused(&format!(r#"{{"x":{a},"x":{b}}}"#), 1236, Format, what);
        refused(&format!(r#"{{"x":{a},"\u0078":{b}}}"#), 1236, Format, what);
        refused(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0, Format, "key 'k' stands twice");
        refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, Format, "__metadata__ stands twice");
        for twice in [r#""dtype":"U8""#, r#""shape":[0]"#, r#""data_offsets":[0,0]"#] {
            let json = format!(r#"{{"x":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],{twice}}}}}"#);
            refused(&json, 0, Format, "stands twice");
        }
    }

    #[test]
    fn e7_a_million_names() {
        let empty = entry("U8", "[0]", 0, 0);
        let entries: Vec<String> = (0..1_000_000).map(|i| format!("\"{i}\":{empty}")).collect();
        let mut json = format!("{{{}", entries.join(","));
        assert_eq!(parse(&(json.clone() + "}"), 0).unwrap().tensors.len(), 1_000_000);
        json = format!("{json},\"7\":{empty}}}");
        let error = parse_header(json.as_bytes(), 0, 2_000_000).unwrap_err();
        assert!(error.message.contains("record 7 at data offset 0 and record 1,000,000"), "{error}");
    }

    #[test]
    fn e8_exact_cover() {
        let two = |a: (u64, u64), b: (u64, u64), len| {
            let (x, y) = (
                entry("U8", &format!("[{}]", a.1 - a.0), a.0, a.1),
                entry("U8", &format!("[{}]", b.1 - b.0), b.0, b.1),
            );
            parse(&format!(r#"{{"x":{x},"y":{y}}}"#), len).map_err(|e| e.message)
        };
        assert!(two((0, 4), (4, 8), 8).is_ok());
        assert!(two((4, 8), (0, 4), 8).is_ok());
        assert!(two((0, 4), (4, 4), 4).is_ok());
        assert!(
            two((0, 4), (0, 4), 4).unwrap_err().contains("data offset 0 overlaps the tensor before it, expected 4")
        );
        assert!(two((0, 4), (3, 8), 8).unwrap_err().contains("overlaps"));
        assert!(two((0, 4), (2, 2), 4).unwrap_err().contains("overlaps"));
        assert!(two((0, 4), (5, 8), 8).unwrap_err().contains("data offset 5 leaves a hole before it, expected 4"));
        assert!(two((1, 4), (4, 8), 8).unwrap_err().contains("leaves a hole"));
        assert!(two((0, 4), (4, 8), 9).unwrap_err().contains("tensors end at data offset 8, data length is 9"));
        refused("{}", 1, Format, "tensors end at data offset 0, data length is 1");
    }

    #[test]
    fn e9_deep_nesting_on_a_small_stack() {
        let check = || {
            let depth = 1_000_000;
            for open in ["[", r#"{"a":"#] {
                let deep = open.repeat(depth);
                for json in [
                    format!(r#"{{"a":{deep}"#),
                    format!(r#"{{"a":{{"dtype":{deep}"#),
                    format!(r#"{{"a":{{"shape":[{deep}"#),
                    format!(r#"{{"a":{{"x":{deep}"#),
                    format!(r#"{{"__metadata__":{{"k":{deep}"#),
                ] {
                    assert_eq!(parse(&json, 0).unwrap_err().kind, Format);
                }
            }
        };
        std::thread::Builder::new().stack_size(2 << 20).spawn(check).unwrap().join().unwrap();
    }

    #[test]
    fn e13_every_prefix_is_refused() {
        let json = format!(r#"{{"__metadata__":{{"a":"b"}},"é\n":{}}}"#, entry("F16", "[2,3]", 0, 12));
        parse(&json, 12).unwrap();
        for len in 0..json.len() {
            assert!(parse_header(&json.as_bytes()[..len], 12, 100).is_err(), "{len}");
        }
    }

    #[test]
    fn e16_names_are_escaped_and_bounded() {
        refused(r#"{"\u001b[2J\u0000":{"x":1}}"#, 0, Format, r"tensor '\u{1b}[2J\0' (record 0): unknown key 'x'");
        let long = "n".repeat((64 << 10) + 1);
        refused(
            &format!(r#"{{"{long}":{}}}"#, entry("U8", "[0]", 0, 0)),
            0,
            Limit,
            "name of 65,537 bytes, limit 65,536",
        );
        let junk = format!(r#"{{"a":{{"dtype":"{long}","shape":[],"data_offsets":[0,0]}}}}"#);
        assert!(parse(&junk, 0).unwrap_err().message.len() < 250);
        assert!(parse(&format!(r#"{{"a":"{long}"}}"#), 0).unwrap_err().message.len() < 250);
        assert!(parse_header(b"{\"\xff\":1}", 0, 10).is_err());
        refused(r#"{"\ud800":{}}"#, 0, Format, "JSON");
    }

    #[test]
    fn e19_unknown_dtypes_are_named() {
        for dtype in ["F4", "F6_E2M3", "F128", "f32", ""] {
            let json = format!(r#"{{"a":{}}}"#, entry(dtype, "[0]", 0, 0));
            refused(&json, 0, Unsupported, &format!("tensor 'a' (record 0): dtype '{dtype}' is not supported"));
        }
    }

    #[test]
    fn entries_must_be_exact() {
        let many = format!("[{}1]", "1,".repeat(32));
        refused(&format!(r#"{{"a":{}}}"#, entry("U8", &many, 0, 1)), 1, Limit, "33 axes, limit 32");
        for (json, part) in [
            (r#"{"a":{"dtype":"U8","shape":[0]}}"#, "must have dtype, shape and data_offsets"),
            (r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}}"#, "must be [begin, end]"),
            (r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}}"#, "must be [begin, end]"),
            (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}"#, "JSON"),
            (r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#, "JSON"),
            (r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}"#, "unknown key 'x'"),
            (r#"{"a":["U8",[0],[0,0]]}"#, "JSON"),
            (r#"{"__metadata__":{"a":1}}"#, "JSON"),
            (r#"{"__metadata__":null}"#, "JSON"),
            (" {}", "must begin with '{'"),
            ("[]", "must begin with '{'"),
            ("", "must begin with '{'"),
            ("{}x", "JSON"),
            ("{}\0", "JSON"),
        ] {
            refused(json, 0, Format, part);
        }
    }
}
