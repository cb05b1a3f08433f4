//! Images as they are given: arrays, whole or parts of others.

use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arg::Name;
use super::array::{Array, tuple};
use super::dtype::{Dtype, Item, float_dtype, ndarray};
use crate::error::Error;
use crate::kernels::image::{Image, Pixels, Size};

/// Images as they were given: arrays of one dtype, and how many images of which size they are.
pub struct Given<'py> {
    pub arrays: Vec<Array<'py>>,
    /// Images of an array; None: a list of arrays, one each, or one image.
    pub batch: Option<usize>,
    pub is_one: bool,
    pub channels: usize,
}

impl Given<'_> {
    /// How many images.
    pub fn count(&self) -> usize {
        self.batch.unwrap_or(self.arrays.len())
    }

    /// Rows and columns of the images of an array.
    pub fn size(&self, array: &Array<'_>) -> Size {
        let shape = &array.shape()[usize::from(self.batch.is_some())..];
        [shape[0], shape[1]]
    }

    /// The rows of each array whose rows lie apart.
    pub fn rows<P: Item>(&self) -> Vec<Vec<&[P]>> {
        self.arrays.iter().map(|array| if array.by_rows { array.rows::<P>() } else { vec![] }).collect()
    }

    /// The images.
    pub fn images<'a, P: Item>(&'a self, rows_of: &'a [Vec<&'a [P]>]) -> Vec<Image<'a, P>> {
        let mut found = vec![];
        for (array, rows_of) in self.arrays.iter().zip(rows_of) {
            let size @ [rows, columns] = self.size(array);
            if array.by_rows {
                found.extend(rows_of.chunks_exact(rows).map(|rows| (size, Pixels::Rows(rows))));
                continue;
            }
            // A batch of none has none.
            let pixels = (rows * columns * self.channels).max(1);
            found.extend(array.slice::<P>().chunks_exact(pixels).map(|x| (size, Pixels::Whole(x))));
        }
        found
    }
}

/// One array of images.
pub fn image_array<'py>(name: Name, object: &Bound<'py, PyAny>, axes: &[usize]) -> PyResult<Array<'py>> {
    let array = ndarray(name, object)?;
    if !axes.contains(&array.ndim()) {
        let batch = if axes.len() > 1 { " or 4 with a batch before them" } else { "" };
        let fix = if array.ndim() == 2 { "; for one channel pass x[..., None]" } else { "" };
        let got = tuple(array.shape());
        let text = format!("{name} must have 3 axes (rows, columns, channels){batch}, got shape {got}{fix}");
        return Err(Error::Shape(text).into());
    }
    let descr = array.dtype();
    let dtype = match (descr.kind(), descr.itemsize()) {
        (b'u', 1) => Dtype::U8,
        (b'f' | b'V', _) => float_dtype(name, &array, None)?,
        _ => {
            let text = format!("{name} must have dtype uint8, float32, float64, float16 or bfloat16, got {descr}");
            return Err(Error::Dtype(text).into());
        }
    };
    Array::rows_input(name, &array, dtype)
}
