//! Products with quantized weights.

use pyo3::prelude::*;
use pyo3::types::PyModule;

use super::arg::{Name, not_one_of, text};
use super::array::{Array, tuple};
use super::borrow::borrow;
use super::dtype::{Dtype, match_dtype};
use super::error::{ask_memory, compute, entry};
use super::parts::{Arrays, GivenParts};
use super::spec::{GivenSpec, Plan, plan};
use super::threads::resolve;
use crate::error::Error;
use crate::kernels::codes::uniform::{self, RowsOf};
use crate::kernels::codes::{self, Coding, Granularity, Uniform};
use crate::kernels::linear::{self, Digits, Form, Packed, Rows};

type Obj<'py> = Bound<'py, PyAny>;

const NAME: &str = "linear";
const MATMUL: &str = "matmul";
const COMPUTE: &str = "'int8', 'int24' or 'float32'";

/// How sums are made; None: in floats.
fn digits(given: &Obj<'_>) -> PyResult<Option<Digits>> {
    match text(NAME, "compute", given)?.as_str() {
        "int8" => Ok(Some(Digits::One)),
        "int24" => Ok(Some(Digits::Three)),
        "float32" => Ok(None),
        _ => Err(not_one_of(NAME, "compute", COMPUTE, given)),
    }
}

/// What is multiplied, checked: `x` [..., in], the bias [out], and what is written [..., out].
struct Operands<'py> {
    x: Array<'py>,
    bias: Option<Array<'py>>,
    out: Array<'py>,
}

impl<'py> Operands<'py> {
    fn new(
        function: &'static str,
        x: &Obj<'py>,
        bias: Option<&Obj<'py>>,
        out: &Obj<'py>,
        [rows, cols]: [usize; 2],
    ) -> PyResult<Self> {
        let x = Array::float(Name::new(function, "x"), x, None)?;
        if x.shape().last() != Some(&cols) {
            let got = tuple(x.shape());
            return Err(Error::Shape(format!(
                "{function}: x must have {cols} in its last axis like w, got shape {got}"
            ))
            .into());
        }
        let bias = bias.map(|bias| Array::float(Name::new(function, "bias"), bias, None)).transpose()?;
        if let Some(bias) = &bias {
            bias.expect_dtype(Dtype::F32, "float32")?;
            bias.expect_shape(&[rows])?;
        }
        let out = Array::float_out(Name::new(function, "out"), out, None)?;
        out.expect_dtype(Dtype::F32, "float32")?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = rows;
        }
        out.expect_shape(&shape)?;
        Ok(Self { x, bias, out })
    }

    fn all(&self) -> impl Iterator<Item = &Array<'py>> {
        [&self.x, &self.out].into_iter().chain(&self.bias)
    }

    /// Call `f` with x as float32, the bias and what is written.
    fn run(&mut self, py: Python<'_>, f: impl FnOnce(&[f32], &[f32], &mut [f32]) + Send) -> PyResult<()> {
        let bias = self.bias.as_ref().map(Array::slice::<f32>).unwrap_or_default();
        // Its whole numbers, and its floats where they have to be made.
        ask_memory(NAME, self.x.len().saturating_mul(8))?;
        let out = self.out.slice_mut::<f32>();
        if self.x.dtype == Dtype::F32 {
            let x = self.x.slice::<f32>();
            return compute(py, || f(x, bias, out));
        }
        match_dtype!(self.x, T => {
            let x = self.x.slice::<T>();
            compute(py, || f(&linear::widen(x), bias, out))
        })
    }
}

/// Rows and columns.
fn matrix(function: &str, shape: &[usize]) -> PyResult<[usize; 2]> {
    shape
        .try_into()
        .map_err(|_| Error::Shape(format!("{function}: w must have shape (out, in), got {}", tuple(shape))).into())
}

/// How codes are, and how many scales a row has; an error where there are no such products.
fn uniform_of(function: &str, plan: &Plan, [rows, cols]: [usize; 2]) -> PyResult<(Uniform, usize, usize)> {
    let found = match (plan.format.coding, plan.spec.granularity) {
        (Coding::Uniform(code), Granularity::Whole) => Some((code, 0, cols)),
        (Coding::Uniform(code), Granularity::Channel { outer: 1, channels, inner })
            if channels == rows && inner == cols =>
        {
            Some((code, 1, cols))
        }
        (Coding::Uniform(code), Granularity::Group { size }) => Some((code, cols.div_ceil(size), size)),
        _ => None,
    };
    found.ok_or_else(|| {
        let got = match plan.format.coding {
            Coding::Blocks(_) => format!("format {:?}", plan.format.name),
            Coding::Uniform(_) => "scales of columns".into(),
        };
        let what =
            "evenly spaced codes, with scales of rows, of groups or of the whole, for compute='int8' and 'int24'";
        let text = format!("{function}: w must have {what}, got {got}; pass compute='float32'");
        Error::Value(text).into()
    })
}

/// Call `f` with the rows of weights, in the dtype of their scales.
macro_rules! with_rows {
    ($arrays:expr, $code:expr, $per_row:expr, $rows:ident => $body:expr) => {{
        let code = $arrays.uniform($code);
        if $arrays.scale.dtype == Dtype::F64 {
            let (codes, params) = $arrays.read_uniform::<f64>();
            let $rows = Rows { codes, code, params, per_row: $per_row };
            $body
        } else {
            let (codes, params) = $arrays.read_uniform::<f32>();
            let $rows = Rows { codes, code, params, per_row: $per_row };
            $body
        }
    }};
}

/// Call `$body` with what writes the numbers of some rows.
macro_rules! with_numbers {
    ($arrays:expr, $plan:expr, $shape:expr, $fill:ident => $body:expr) => {{
        let (spec, [height, width]) = ($plan.spec, $shape);
        match $plan.format.coding {
            Coding::Uniform(code) => {
                let code = $arrays.uniform(code);
                if $arrays.scale.dtype == Dtype::F64 {
                    let (codes, params) = $arrays.read_uniform::<f64>();
                    let $fill = |rows: &[usize], out: &mut [f32]| {
                        let of = RowsOf { height, width, rows };
                        uniform::dequantize_rows(codes, code, spec, params, of, out, 1);
                    };
                    $body
                } else {
                    let (codes, params) = $arrays.read_uniform::<f32>();
                    let $fill = |rows: &[usize], out: &mut [f32]| {
                        let of = RowsOf { height, width, rows };
                        uniform::dequantize_rows(codes, code, spec, params, of, out, 1);
                    };
                    $body
                }
            }
            Coding::Blocks(blocks) => {
                let parts = $arrays.read_blocks();
                let $fill = |rows: &[usize], out: &mut [f32]| {
                    codes::dequantize_rows(blocks, parts, spec, RowsOf { height, width, rows }, out, 1);
                };
                $body
            }
        }
    }};
}

/// Weights as quantization makes them: what they are made of, how, and their shape.
type GivenWeights<'py> = (GivenParts<'py>, GivenSpec<'py>, Vec<usize>);

#[pyfunction]
fn linear_rows<'py>(
    x: &Obj<'py>,
    w: GivenWeights<'py>,
    bias: Option<&Obj<'py>>,
    out: &Obj<'py>,
    how: &Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry(NAME, || {
        let (py, threads, digits) = (out.py(), resolve(NAME, threads)?, digits(how)?);
        let (parts, spec, shape) = w;
        let shape = matrix(NAME, &shape)?;
        let plan = plan(NAME, &spec, &shape)?;
        let arrays = Arrays::new(NAME, &parts, &plan, false)?;
        let mut operands = Operands::new(NAME, x, bias, out, shape)?;
        let _borrow = borrow(&operands.all().chain(arrays.all()).collect::<Vec<_>>())?;
        let Some(digits) = digits else {
            return with_numbers!(arrays, plan, shape, fill => operands.run(py, |x, bias, out| {
                linear::multiply_floats(x, shape, fill, bias, out, threads);
            }));
        };
        let (code, per_row, group) = uniform_of(NAME, &plan, shape)?;
        let form = Form::new(code.bits, code.scheme, shape, group);
        with_rows!(arrays, code, per_row, rows => operands.run(py, |x, bias, out| {
            linear::multiply(x, &form, &rows, digits, bias, out, threads);
        }))
    })
}

/// Products with weights that are not transposed.
#[pyfunction]
fn linear_columns<'py>(x: &Obj<'py>, w: GivenWeights<'py>, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
    entry(MATMUL, || {
        let (py, threads) = (out.py(), resolve(MATMUL, threads)?);
        let (parts, spec, shape) = w;
        let [rows, cols] = matrix(MATMUL, &shape)?;
        let plan = plan(MATMUL, &spec, &shape)?;
        let arrays = Arrays::new(MATMUL, &parts, &plan, false)?;
        let mut operands = Operands::new(MATMUL, x, None, out, [cols, rows])?;
        let _borrow = borrow(&operands.all().chain(arrays.all()).collect::<Vec<_>>())?;
        with_numbers!(arrays, plan, [rows, cols], fill => operands.run(py, |x, _, out| {
            linear::multiply_columns(x, [rows, cols], fill, out, threads);
        }))
    })
}

/// The form of packed weights.
fn packed_form(spec: &GivenSpec<'_>, shape: &[usize]) -> PyResult<Form> {
    let shape = matrix("prepack", shape)?;
    let plan = plan("prepack", spec, &shape)?;
    let (code, _, group) = uniform_of("prepack", &plan, shape)?;
    Ok(Form::new(code.bits, code.scheme, shape, group))
}

#[pyfunction]
fn linear_packed<'py>(
    x: &Obj<'py>,
    w: (Obj<'py>, GivenSpec<'py>, Vec<usize>),
    bias: Option<&Obj<'py>>,
    out: &Obj<'py>,
    how: &Obj<'py>,
    threads: Option<&Obj<'py>>,
) -> PyResult<()> {
    entry(NAME, || {
        let (py, threads, digits) = (out.py(), resolve(NAME, threads)?, digits(how)?);
        let (panels, spec, shape) = w;
        let form = packed_form(&spec, &shape)?;
        let digits = digits.ok_or_else(|| {
            Error::Value(format!(
                "{NAME}: compute must be 'int8' or 'int24' for packed weights, got 'float32'; pass the QuantizedArray"
            ))
        })?;
        let panels = Array::bytes(Name::new(NAME, "w.panels"), &panels)?;
        panels.expect_dtype(Dtype::U8, "uint8")?;
        panels.expect_shape(&[form.panels(), form.panel_bytes()])?;
        let mut operands = Operands::new(NAME, x, bias, out, [form.rows, form.cols])?;
        let _borrow = borrow(&operands.all().chain([&panels]).collect::<Vec<_>>())?;
        let packed = Packed(panels.slice::<u8>());
        operands.run(py, |x, bias, out| linear::multiply(x, &form, &packed, digits, bias, out, threads))
    })
}

/// The shape of panels.
#[pyfunction]
fn packed_shape(spec: GivenSpec<'_>, shape: Vec<usize>) -> PyResult<(usize, usize)> {
    entry("prepack", || {
        let form = packed_form(&spec, &shape)?;
        Ok((form.panels(), form.panel_bytes()))
    })
}

#[pyfunction]
fn prepack<'py>(w: GivenWeights<'py>, out: &Obj<'py>, threads: Option<&Obj<'py>>) -> PyResult<()> {
    entry("prepack", || {
        let (py, threads) = (out.py(), resolve("prepack", threads)?);
        let (parts, spec, shape) = w;
        let shape = matrix("prepack", &shape)?;
        let plan = plan("prepack", &spec, &shape)?;
        let (code, per_row, group) = uniform_of("prepack", &plan, shape)?;
        let form = Form::new(code.bits, code.scheme, shape, group);
        let arrays = Arrays::new("prepack", &parts, &plan, false)?;
        let mut out = Array::bytes_out(Name::new("prepack", "out"), out)?;
        out.expect_shape(&[form.panels(), form.panel_bytes()])?;
        let _borrow = borrow(&std::iter::once(&out).chain(arrays.all()).collect::<Vec<_>>())?;
        let target = out.slice_mut::<u8>();
        with_rows!(arrays, code, per_row, rows => compute(py, || linear::pack(rows, &form, target, threads)))
    })
}

pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(linear_rows, m)?)?;
    m.add_function(wrap_pyfunction!(linear_packed, m)?)?;
    m.add_function(wrap_pyfunction!(linear_columns, m)?)?;
    m.add_function(wrap_pyfunction!(packed_shape, m)?)?;
    m.add_function(wrap_pyfunction!(prepack, m)?)
}
