//! Amounts in the currency that the shop keeps its books in.

use crate::v1::Money;

/// Catalog prices and shipping costs are in this currency.
pub(crate) const BASE_CURRENCY: &str = "USD";

impl Money {
    /// An amount of `currency_code`, in its smallest unit.
    pub fn new(currency_code: impl Into<String>, minor_units: i64) -> Self {
        Self { currency_code: currency_code.into(), minor_units }
    }

    pub(crate) fn us_cents(cents: i64) -> Self {
        Self::new(BASE_CURRENCY, cents)
    }
}
