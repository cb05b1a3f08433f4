//! How codes are made, known to the compiler.

use super::{ParamsRef, Scheme, Uniform};

/// How.
pub(super) trait Mode: Copy + Send + Sync + 'static {
    /// The scheme of finite numbers; None: any scheme, of numbers of which some may be NaN or infinite.
    const SCHEME: Option<Scheme>;
    /// Whether the lowest of symmetric codes has no positive twin: where the scale is not of the plain formula.
    const LOWEST: bool = false;

    /// The scheme.
    #[inline(always)]
    fn scheme(uniform: Uniform) -> Scheme {
        Self::SCHEME.unwrap_or(uniform.scheme)
    }

    /// The parameters, without asking for those that the scheme lacks.
    #[inline(always)]
    fn of<C>(params: ParamsRef<'_, C>) -> ParamsRef<'_, C> {
        match Self::SCHEME {
            Some(Scheme::Symmetric) => ParamsRef { zero_point: &[], offset: &[], ..params },
            Some(Scheme::Asymmetric) => ParamsRef { offset: &[], ..params },
            Some(Scheme::MinMax) => ParamsRef { zero_point: &[], ..params },
            None => params,
        }
    }
}

/// Scheme "symmetric".
#[derive(Clone, Copy)]
pub(super) struct Symmetric;
/// Scheme "asymmetric".
#[derive(Clone, Copy)]
pub(super) struct Asymmetric;
/// Scheme "minmax".
#[derive(Clone, Copy)]
pub(super) struct MinMax;
/// Any scheme: NaN gets the code of zero, infinities the limits, and ranges are of the finite numbers.
#[derive(Clone, Copy)]
pub(super) struct Saturating;
/// Any scheme and any scale, of either sign; NaN and infinities as for [`Saturating`].
#[derive(Clone, Copy)]
pub(super) struct Given;
impl Mode for Symmetric {
    const SCHEME: Option<Scheme> = Some(Scheme::Symmetric);
}
impl Mode for Asymmetric {
    const SCHEME: Option<Scheme> = Some(Scheme::Asymmetric);
}
impl Mode for MinMax {
    const SCHEME: Option<Scheme> = Some(Scheme::MinMax);
}
impl Mode for Saturating {
    const SCHEME: Option<Scheme> = None;
}
impl Mode for Given {
    const SCHEME: Option<Scheme> = None;
    const LOWEST: bool = true;
}
