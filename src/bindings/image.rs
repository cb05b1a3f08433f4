//! Images as a model takes them: a plan, and the calls that go by it.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyModule, PyString, PyTuple};

use super::arg::Name;
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::{Dtype, Item, match_dtype};
use super::error::{compute, entry};
use super::image_arrays::{Given, image_array};
use super::threads::resolve;
use crate::error::{Error, Result};
use crate::kernels::image::{
    CHANNELS, Filter, Fit, Layout, Pixel, Plan, Quantization, Size, Steps, Target, place, run,
};
use crate::real::{Bf16, F16};

type Obj<'py> = Bound<'py, PyAny>;

/// Size or None, resize, interpolation, whether channels lie apart, whether the first and third change places.
type GivenLayout<'a> = (Option<(usize, usize)>, &'a str, &'a str, bool, bool);

/// Scale, mean and std of the output's channels, the level of the border.
type GivenSteps = (f32, [f32; CHANNELS], [f32; CHANNELS], f32);

/// The dtype of the output by name; scale, zero point, least and largest code, whether halves go away from 0.
type GivenOutput<'a> = (&'a str, Option<(f32, i32, i32, i32, bool)>);

/// How messages name it.
const IMAGE: &str = "Image";

/// What `modelopt_rs.preprocess.Image` goes by.
#[pyclass(frozen, module = "modelopt_rs._core")]
struct ImagePlan {
    plan: Plan,
    /// How many channels mean and std have, where they have one for each.
    channels: Option<usize>,
    dtype: Dtype,
    dtype_name: String,
}

impl ImagePlan {
    fn given<'py>(&self, images: &Obj<'py>) -> PyResult<Given<'py>> {
        let list = images.cast::<PyList>().map(|list| list.iter().collect::<Vec<_>>());
        let listed = list.or_else(|_| images.cast::<PyTuple>().map(|tuple| tuple.iter().collect()));
        let given = if let Ok(list) = listed {
            let name = |i| Name::of_list(IMAGE, "images", i);
            let arrays: Vec<_> =
                list.iter().enumerate().map(|(i, x)| image_array(name(i), x, &[3])).collect::<PyResult<_>>()?;
            let Some(first) = arrays.first() else {
                return Err(Error::Value("Image: images must have at least one image, got an empty list".into()).into());
            };
            let channels = first.cols();
            Given { arrays, batch: None, is_one: false, channels }
        } else {
            let array = image_array(Name::new(IMAGE, "images"), images, &[3, 4])?;
            let batch = (array.shape().len() == 4).then(|| array.shape()[0]);
            let channels = array.cols();
            Given { arrays: vec![array], batch, is_one: batch.is_none(), channels }
        };
        self.check(&given)?;
        Ok(given)
    }

    /// Refuse images that don't fit the plan or each other.
    fn check(&self, given: &Given<'_>) -> Result<()> {
        let to = self.size(given);
        for array in &given.arrays {
            let (name, shape) = (array.name, tuple(array.shape()));
            let (channels, dtype) = (array.cols(), array.object_dtype());
            if let Some(wanted) = self.channels.filter(|&wanted| wanted != channels) {
                let text = format!("{name} must have {wanted} channels as mean and std have, got shape {shape}");
                return Err(Error::Shape(text));
            }
            if ![1, 3, 4].contains(&channels) {
                return Err(Error::Shape(format!("{name} must have 1, 3 or 4 channels last, got shape {shape}")));
            }
            if channels != given.channels {
                let text = format!("{name} must have {} channels like images[0], got shape {shape}", given.channels);
                return Err(Error::Shape(text));
            }
            if array.dtype != given.arrays[0].dtype {
                let first = given.arrays[0].object_dtype();
                return Err(Error::Dtype(format!("{name} must have dtype {first} like images[0], got {dtype}")));
            }
            let from = given.size(array);
            if self.plan.layout.fit == Fit::Same && from != to {
                let [rows, columns] = to;
                let text =
                    format!("{name} must have {rows} rows and {columns} columns where resize=None, got shape {shape}");
                return Err(Error::Shape(text));
            }
            self.place(from, to).map_err(|why| Error::Shape(format!("{name} {why}")))?;
        }
        Ok(())
    }

    /// Rows and columns of the output.
    fn size(&self, given: &Given<'_>) -> Size {
        self.plan.layout.size.unwrap_or_else(|| given.size(&given.arrays[0]))
    }

    /// Where an image comes to lie, or why nowhere.
    fn place(&self, from: Size, to: Size) -> std::result::Result<crate::kernels::image::Placement, String> {
        place(self.plan.layout.fit, from, to).ok_or_else(|| {
            let got = format!("got {} rows and {} columns", from[0], from[1]);
            if from.contains(&0) {
                return format!("must have pixels, {got}");
            }
            let (fit, fix) = (tuple(&to), "use resize=\"stretch\" or \"crop\"");
            format!("must keep a pixel of each side when it is fitted into {fit}, {got}; {fix}")
        })
    }

    /// The shape of the output.
    fn output_shape(&self, given: &Given<'_>) -> [usize; 4] {
        let ([rows, columns], channels) = (self.size(given), given.channels);
        let n = given.count();
        if self.plan.layout.planar { [n, channels, rows, columns] } else { [n, rows, columns, channels] }
    }

    fn output<'py>(&self, given: &Given<'_>, out: &Obj<'py>) -> PyResult<Array<'py>> {
        let name = Name::new(IMAGE, "out");
        let array = match self.dtype {
            Dtype::U8 | Dtype::I8 => Array::bytes_out(name, out)?,
            Dtype::Bf16 => Array::float_out(name, out, Some(&PyString::intern(out.py(), "bf16").into_any()))?,
            _ => Array::float_out(name, out, None)?,
        };
        array.expect_dtype(self.dtype, &self.dtype_name)?;
        let shape = self.output_shape(given);
        if !(given.is_one && array.shape() == &shape[1..]) {
            array.expect_shape(&shape)?;
        }
        Ok(array)
    }
}

/// Write images of one type to an output of another.
struct Call<'a, 'py> {
    plan: &'a Plan,
    given: &'a Given<'py>,
    to: Size,
    threads: usize,
}

impl Call<'_, '_> {
    fn typed<P: Pixel + Item, T: Target + Item>(&self, py: Python<'_>, out: &mut Array<'_>) -> PyResult<()> {
        let rows = self.given.rows::<P>();
        let (images, out) = (self.given.images(&rows), out.slice_mut::<T>());
        let (plan, form, threads) = (self.plan, (self.to, self.given.channels), self.threads);
        compute(py, || run(plan, &images, form, out, threads))
    }

    fn of<P: Pixel + Item>(&self, py: Python<'_>, out: &mut Array<'_>) -> PyResult<()> {
        match out.dtype {
            Dtype::U8 | Dtype::I8 => self.typed::<P, u8>(py, out),
            Dtype::F16 => self.typed::<P, F16>(py, out),
            Dtype::Bf16 => self.typed::<P, Bf16>(py, out),
            _ => self.typed::<P, f32>(py, out),
        }
    }
}

#[pymethods]
impl ImagePlan {
    /// Of options that the Python face has checked.
    #[new]
    fn new(
        layout: GivenLayout<'_>,
        steps: GivenSteps,
        channels: Option<usize>,
        output: GivenOutput<'_>,
    ) -> PyResult<Self> {
        entry("Image", || {
            let (size, resize, interpolation, planar, swap) = layout;
            let fit = match resize {
                "letterbox" => Fit::Letterbox,
                "stretch" => Fit::Stretch,
                "crop" => Fit::Crop,
                _ => Fit::Same,
            };
            let filter = match interpolation {
                "nearest" => Filter::Nearest,
                "area" => Filter::Area,
                "triangle" => Filter::Triangle,
                _ => Filter::Linear,
            };
            let (dtype_name, codes) = output;
            let dtype = match dtype_name {
                "uint8" => Dtype::U8,
                "int8" => Dtype::I8,
                "float16" => Dtype::F16,
                "bfloat16" => Dtype::Bf16,
                _ => Dtype::F32,
            };
            let (scale, mean, std, pad) = steps;
            let codes = codes.map(|(scale, zero_point, least, largest, away)| Quantization {
                scale,
                zero_point,
                codes: [least, largest],
                away,
            });
            let layout = Layout { size: size.map(|(rows, columns)| [rows, columns]), fit, filter, planar, swap };
            let plan = Plan::new(layout, Steps { scale, mean, std }, pad, codes);
            Ok(Self { plan, channels, dtype, dtype_name: dtype_name.into() })
        })
    }

    /// Rows and columns of the resized image, rows above and columns left of it.
    fn geometry(&self, rows: usize, columns: usize) -> PyResult<(usize, usize, i64, i64)> {
        entry("geometry", || {
            let from = [rows, columns];
            let placed = self.place(from, self.plan.layout.size.unwrap_or(from));
            let placed = placed.map_err(|why| Error::Shape(format!("geometry: shape {why}")))?;
            Ok((placed.resized[0], placed.resized[1], placed.offset[0], placed.offset[1]))
        })
    }

    /// The shape of the output for these images.
    fn shape(&self, images: &Obj<'_>) -> PyResult<[usize; 4]> {
        entry(IMAGE, || Ok(self.output_shape(&self.given(images)?)))
    }

    /// Write the output for these images.
    #[pyo3(signature = (images, out, threads))]
    fn run<'py>(&self, images: &Obj<'py>, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
        entry(IMAGE, || {
            let threads = resolve(IMAGE, threads)?;
            let given = self.given(images)?;
            let mut target = self.output(&given, out)?;
            let _borrow = borrow(&given.arrays.iter().chain([&target]).collect::<Vec<_>>())?;
            let call = Call { plan: &self.plan, given: &given, to: self.size(&given), threads };
            let first = &given.arrays[0];
            if first.dtype == Dtype::U8 {
                return call.of::<u8>(out.py(), &mut target);
            }
            match_dtype!(first, P => call.of::<P>(out.py(), &mut target))
        })
    }
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<ImagePlan>()
}
