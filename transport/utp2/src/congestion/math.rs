//! The two roots the controller needs, without a floating point library.

/// Square root of 0 ≤ x < 2^20, to about six digits.
pub(super) fn sqrt(x: f64) -> f64 {
    const SCALE: f64 = (1u64 << 40) as f64;
    let scaled = (x.clamp(0.0, 1_048_575.0) * SCALE) as u64;
    scaled.isqrt() as f64 / (1u64 << 20) as f64
}

/// Fourth root, same range.
pub(super) fn fourth_root(x: f64) -> f64 {
    sqrt(sqrt(x))
}

/// Cube root of x ≥ 0.
pub(super) fn cube_root(x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let mut y = sqrt(x.min(1e6)).max(1e-3);
    for _ in 0..24 {
        y = (2.0 * y + x / (y * y)) / 3.0;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_close() {
        for x in [0.0, 1e-6, 0.01, 0.5, 1.0, 2.0, 1000.0, 1e6] {
            assert!((sqrt(x) - f64::sqrt(x)).abs() < 1e-5 + x * 1e-6, "{x}");
            assert!((cube_root(x) - x.cbrt()).abs() < 1e-3, "{x}");
            assert!((fourth_root(x) - x.powf(0.25)).abs() < 1e-2, "{x}");
        }
    }
}
