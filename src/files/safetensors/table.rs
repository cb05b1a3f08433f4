//! The tensors of a header, held tightly: a hostile header may have a million of them.

use super::{Header, Tensor};

/// Tensors by place and by name: a few arrays, whatever their number.
#[derive(Debug, Default)]
pub struct Table {
    names: String,
    name_ends: Vec<usize>,
    dtypes: Vec<&'static str>,
    axes: Vec<u64>,
    axis_ends: Vec<usize>,
    /// Where each begins; they cover the data, so each ends where the next begins.
    begins: Vec<u64>,
    data_len: u64,
    /// Places in the order of the names: found by halving, where no input can be slow.
    by_name: Vec<u32>,
}

impl Table {
    /// Take over a header's tensors, each freed as soon as it is here.
    pub fn new(header: Header, data_len: u64) -> (Self, Vec<(String, String)>) {
        let mut table = Self { data_len, ..Self::default() };
        for Tensor { name, dtype, shape, begin, .. } in header.tensors {
            table.names.push_str(&name);
            table.name_ends.push(table.names.len());
            table.dtypes.push(dtype);
            table.axes.extend(shape);
            table.axis_ends.push(table.axes.len());
            table.begins.push(begin);
        }
        let mut by_name: Vec<u32> = (0..table.begins.len() as u32).collect();
        by_name.sort_unstable_by_key(|&i| table.name(i as usize));
        table.by_name = by_name;
        (table, header.metadata)
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.begins.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.begins.is_empty()
    }

    /// The name of a tensor.
    pub fn name(&self, i: usize) -> &str {
        &self.names[start(&self.name_ends, i)..self.name_ends[i]]
    }

    /// The dtype of a tensor.
    pub fn dtype(&self, i: usize) -> &'static str {
        self.dtypes[i]
    }

    /// The shape of a tensor.
    pub fn shape(&self, i: usize) -> &[u64] {
        &self.axes[start(&self.axis_ends, i)..self.axis_ends[i]]
    }

    /// Where its bytes begin in the data, and where they end.
    pub fn extent(&self, i: usize) -> (u64, u64) {
        (self.begins[i], self.begins.get(i + 1).copied().unwrap_or(self.data_len))
    }

    /// The place of a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        let found = self.by_name.binary_search_by_key(&name, |&i| self.name(i as usize)).ok()?;
        Some(self.by_name[found] as usize)
    }
}

fn start(ends: &[usize], i: usize) -> usize {
    if i == 0 { 0 } else { ends[i - 1] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::safetensors::parse_header;

    #[test]
    fn test_every_tensor_is_found_as_the_header_gave_it() {
        let text = br#"{"b":{"dtype":"U8","shape":[2,3],"data_offsets":[1,7]},"":{"dtype":"U8","shape":[],
            "data_offsets":[0,1]},"a":{"dtype":"F32","shape":[0],"data_offsets":[7,7]},"__metadata__":{"k":"v"}}"#;
        let header = parse_header(text, 7, 10).unwrap();
        let want = header.tensors.clone();
        let (table, metadata) = Table::new(header, 7);
        assert_eq!((table.len(), metadata), (3, vec![("k".into(), "v".into())]));
        for (i, t) in want.iter().enumerate() {
            assert_eq!((table.find(&t.name), table.name(i), table.dtype(i)), (Some(i), &t.name[..], t.dtype));
            assert_eq!((table.shape(i), table.extent(i)), (&t.shape[..], (t.begin, t.end)));
        }
        assert_eq!((table.find("c"), Table::new(Header::default(), 0).0.is_empty()), (None, true));
    }
}
