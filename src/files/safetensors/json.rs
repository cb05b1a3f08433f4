//! From JSON text to a header, one value at a time: no tree of values is built, and nothing nests deeper than 3.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{DTYPES, ErrorKind, Header, HeaderError, Tensor, place};
use crate::files::text::{quote, thousands};

/// The longest tensor name, in bytes.
const MAX_NAME: usize = 64 << 10;
/// The most axes: what every supported `NumPy` can hold.
const MAX_AXES: usize = 32;

/// Collects the header. `error` is what went wrong, where that is more than bad JSON: serde's errors carry text only.
pub(super) struct Reader {
    pub(super) header: Header,
    has_metadata: bool,
    max_tensors: usize,
    pub(super) error: Option<HeaderError>,
}

impl Reader {
    pub(super) fn new(max_tensors: usize) -> Self {
        Self { header: Header::default(), has_metadata: false, max_tensors, error: None }
    }

    fn fail<T, E: serde::de::Error>(&mut self, kind: ErrorKind, message: String) -> Result<T, E> {
        let error = E::custom("see Reader::error");
        self.error.get_or_insert(HeaderError::new(kind, message));
        Err(error)
    }
}

impl<'de> DeserializeSeed<'de> for &mut Reader {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Reader {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if self.has_metadata {
                    return self.fail(ErrorKind::Format, "__metadata__ stands twice".into());
                }
                self.has_metadata = true;
                map.next_value_seed(MetadataSeed(&mut self.header.metadata))?;
                continue;
            }
            let record = self.header.tensors.len() as u32;
            if record as usize == self.max_tensors {
                let max = thousands(self.max_tensors as u64);
                return self.fail(ErrorKind::Limit, format!("more than {max} tensors"));
            }
            if name.len() > MAX_NAME {
                let (max, len) = (thousands(MAX_NAME as u64), thousands(name.len() as u64));
                let place = place(&name, record);
                return self.fail(ErrorKind::Limit, format!("{place}: name of {len} bytes, limit {max}"));
            }
            let tensor = map.next_value_seed(EntrySeed { name: name.into(), record, reader: self })?;
            self.header.tensors.push(tensor);
        }
        Ok(())
    }
}

/// One tensor's object: exactly `dtype`, `shape` and `data_offsets`, in any order.
struct EntrySeed<'a> {
    name: Box<str>,
    record: u32,
    reader: &'a mut Reader,
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = Tensor;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tensor, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = Tensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with dtype, shape and data_offsets for {}", place(&self.name, self.record))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensor, A::Error> {
        let Self { name, record, reader } = self;
        let at = || place(&name, record);
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => {
                    let text = map.next_value::<String>()?;
                    let Some((known, _)) = DTYPES.iter().find(|(known, _)| *known == text) else {
                        let message = format!("{}: dtype {} is not supported", at(), quote(&text));
                        return reader.fail(ErrorKind::Unsupported, message);
                    };
                    dtype.replace(*known).is_some()
                }
                "shape" => shape.replace(map.next_value_seed(Integers { keep: MAX_AXES })?).is_some(),
                "data_offsets" => offsets.replace(map.next_value_seed(Integers { keep: 2 })?).is_some(),
                _ => {
                    let message = format!("{}: unknown key {}", at(), quote(&key));
                    return reader.fail(ErrorKind::Format, message);
                }
            };
            if twice {
                return reader.fail(ErrorKind::Format, format!("{}: key '{key}' stands twice", at()));
            }
        }
        let (Some(dtype), Some(shape), Some(offsets)) = (dtype, shape, offsets) else {
            return reader.fail(ErrorKind::Format, format!("{}: must have dtype, shape and data_offsets", at()));
        };
        let (shape, axes) = shape;
        if axes > MAX_AXES {
            let message = format!("{}: {} axes, limit {MAX_AXES}", at(), thousands(axes as u64));
            return reader.fail(ErrorKind::Limit, message);
        }
        let ([begin, end], 2) = (&offsets.0[..], offsets.1) else {
            return reader.fail(ErrorKind::Format, format!("{}: data_offsets must be [begin, end]", at()));
        };
        let (begin, end) = (*begin, *end);
        Ok(Tensor { name, dtype, shape: shape.into(), begin, end, record })
    }
}

/// An array of unsigned integers: the first `keep` of them, and how many there are.
struct Integers {
    keep: usize,
}

impl<'de> DeserializeSeed<'de> for Integers {
    type Value = (Vec<u64>, usize);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Integers {
    type Value = (Vec<u64>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of unsigned integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut values, mut count) = (Vec::new(), 0);
        while let Some(value) = seq.next_element::<u64>()? {
            count += 1;
            if count <= self.keep {
                values.push(value);
            }
        }
        Ok((values, count))
    }
}

/// `__metadata__`: an object of strings.
struct MetadataSeed<'a>(&'a mut Vec<(String, String)>);

impl<'de> DeserializeSeed<'de> for MetadataSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MetadataSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings for __metadata__")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(entry) = map.next_entry::<String, String>()? {
            self.0.push(entry);
        }
        Ok(())
    }
}
