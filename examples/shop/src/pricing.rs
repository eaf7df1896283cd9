//! What things cost in the buyer's currency. Whole numbers only: a rate is in millionths, an amount in minor units.

use std::{cmp::Ordering, collections::BTreeMap};

use outpost::{BoxError, Config};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use crate::{
    check,
    money::BASE_CURRENCY,
    v1::{
        Money, QuoteItem, QuoteRequest, QuoteResponse, QuotedItem,
        pricing_server::{self, PricingServer},
    },
};

/// Most lines that one quote may have.
const MAX_ITEMS: usize = 1_000;

/// The currencies that the shop trades in, under `[modules.pricing]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PricingConfig {
    /// By ISO 4217 code. The table must hold USD, which catalog prices are in.
    pub currencies: BTreeMap<String, Currency>,
}

/// A currency that the shop trades in.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Currency {
    /// What one US dollar costs, in millionths of this currency: 1 to 10^12.
    pub per_usd_micros: u64,
    /// Digits of the minor unit: 2 for cents, 0 for yen. At most 4.
    pub decimals: u32,
}

impl Default for PricingConfig {
    fn default() -> Self {
        let currencies = [
            ("CHF", 885_000, 2),
            ("EUR", 920_000, 2),
            ("GBP", 785_000, 2),
            ("JPY", 151_250_000, 0),
            ("KWD", 307_000, 3),
            ("USD", 1_000_000, 2),
        ];
        Self {
            currencies: currencies
                .into_iter()
                .map(|(code, per_usd_micros, decimals)| (code.to_owned(), Currency { per_usd_micros, decimals }))
                .collect(),
        }
    }
}

/// Builds the module. It calls no other.
///
/// # Errors
/// When a rate is out of its range, or there is none for US dollars.
pub async fn new(config: Config<PricingConfig>) -> Result<PricingServer<Pricing>, BoxError> {
    let pricing = Pricing::new(config.into_inner())?;
    Ok(PricingServer::new(pricing))
}

/// The module. It holds its table of rates; a quote may have 1,000 lines.
#[derive(Debug)]
pub struct Pricing {
    currencies: BTreeMap<String, Currency>,
}

#[tonic::async_trait]
impl pricing_server::Pricing for Pricing {
    async fn quote(&self, request: Request<QuoteRequest>) -> Result<Response<QuoteResponse>, Status> {
        self.price(request.into_inner()).map(Response::new)
    }
}

impl Pricing {
    fn new(config: PricingConfig) -> Result<Self, String> {
        let currencies = config.currencies;
        for (code, currency) in &currencies {
            // With these bounds no conversion of an `i64` leaves an `i128`.
            if !(1..=1_000_000_000_000).contains(&currency.per_usd_micros) || currency.decimals > 4 {
                return Err(format!("currency {code} is out of range: {currency:?}"));
            }
        }
        if !currencies.contains_key(BASE_CURRENCY) {
            return Err(format!("currencies lacks {BASE_CURRENCY}, which prices are in"));
        }
        Ok(Self { currencies })
    }

    fn price(&self, request: QuoteRequest) -> Result<QuoteResponse, Status> {
        let code = request.currency_code.as_str();
        if request.items.len() > MAX_ITEMS {
            return Err(Status::resource_exhausted(format!("more than {MAX_ITEMS} items")));
        }
        let mut total: i64 = 0;
        let mut items = Vec::with_capacity(request.items.len());
        for item in request.items {
            let item = self.price_item(item, code)?;
            total = total.checked_add(item.1).ok_or_else(too_much)?;
            items.push(item.0);
        }
        let shipping = request.shipping.map(|cost| self.convert(&cost, code)).transpose()?;
        if let Some(cost) = shipping {
            total = total.checked_add(cost).ok_or_else(too_much)?;
        }
        // Also refuses an unknown currency when there is nothing to convert.
        self.currency(code)?;
        Ok(QuoteResponse {
            items,
            shipping: shipping.map(|cost| Money::new(code, cost)),
            total: Some(Money::new(code, total)),
        })
    }

    /// The priced line, and its total once more as a number.
    fn price_item(&self, item: QuoteItem, code: &str) -> Result<(QuotedItem, i64), Status> {
        if item.quantity == 0 {
            return Err(Status::invalid_argument("quantity must be at least 1"));
        }
        let unit_price = check::present("unit_price", item.unit_price)?;
        let unit_price = self.convert(&unit_price, code)?;
        let total = unit_price.checked_mul(i64::from(item.quantity)).ok_or_else(too_much)?;
        let line = QuotedItem {
            product_id: item.product_id,
            quantity: item.quantity,
            unit_price: Some(Money::new(code, unit_price)),
            total: Some(Money::new(code, total)),
        };
        Ok((line, total))
    }

    /// Converts in one step, and so rounds once, also between two currencies that are not US dollars.
    fn convert(&self, amount: &Money, code: &str) -> Result<i64, Status> {
        if amount.minor_units < 0 {
            return Err(Status::invalid_argument("an amount is negative"));
        }
        let (from, to) = (self.currency(&amount.currency_code)?, self.currency(code)?);
        let scale = |currency: Currency| i128::from(currency.per_usd_micros) * 10_i128.pow(currency.decimals);
        let converted = divide_half_even(i128::from(amount.minor_units) * scale(to), scale(from));
        i64::try_from(converted).map_err(|_| too_much())
    }

    fn currency(&self, code: &str) -> Result<Currency, Status> {
        self.currencies.get(code).copied().ok_or_else(|| {
            let known: Vec<&str> = self.currencies.keys().map(String::as_str).collect();
            Status::invalid_argument(format!("the shop does not trade in `{code}`, but in {}", known.join(", ")))
        })
    }
}

fn too_much() -> Status {
    Status::out_of_range("the amount is too large")
}

/// Divides by a positive number and rounds to the nearest; a half goes to the even neighbour, so that many roundings do
/// not drift.
fn divide_half_even(dividend: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (dividend.div_euclid(divisor), dividend.rem_euclid(divisor));
    match rest.cmp(&(divisor - rest)) {
        Ordering::Less => quotient,
        Ordering::Equal => quotient + (quotient & 1),
        Ordering::Greater => quotient + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pricing() -> Pricing {
        Pricing::new(PricingConfig::default()).unwrap()
    }

    #[test]
    fn a_half_rounds_to_the_even_neighbour() {
        for (dividend, expected) in [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2)] {
            assert_eq!(divide_half_even(dividend, 2), expected, "{dividend}/2");
        }
        assert_eq!([divide_half_even(4, 3), divide_half_even(5, 3)], [1, 2]);
    }

    #[test]
    fn currencies_with_other_minor_units_convert() {
        let convert = |from, amount, to| pricing().convert(&Money::new(from, amount), to).unwrap();
        assert_eq!(convert("USD", 10_000, "EUR"), 9_200);
        assert_eq!(convert("USD", 10_000, "JPY"), 15_125);
        assert_eq!(convert("USD", 10_000, "KWD"), 30_700);
        assert_eq!(convert("JPY", 15_125, "USD"), 10_000);
        assert_eq!(convert("EUR", 1, "EUR"), 1);
        assert_eq!(convert("USD", i64::MAX, "USD"), i64::MAX);
    }

    #[test]
    fn an_amount_too_large_is_an_error_and_no_overflow() {
        let error = pricing().convert(&Money::us_cents(i64::MAX), "KWD").unwrap_err();
        assert_eq!(error.code(), tonic::Code::OutOfRange);
    }

    #[test]
    fn the_lines_and_shipping_add_up_to_the_total() {
        let item =
            |cents, quantity| QuoteItem { product_id: "p".into(), unit_price: Some(Money::us_cents(cents)), quantity };
        let quote = pricing()
            .price(QuoteRequest {
                currency_code: "EUR".into(),
                items: vec![item(1_299, 3), item(333, 7)],
                shipping: Some(Money::us_cents(499)),
            })
            .unwrap();
        let lines: i64 = quote.items.iter().map(|i| i.total.as_ref().unwrap().minor_units).sum();
        assert_eq!(lines, 1_195 * 3 + 306 * 7);
        assert_eq!(quote.shipping, Some(Money::new("EUR", 459)));
        assert_eq!(quote.total, Some(Money::new("EUR", lines + 459)));
    }

    #[test]
    fn a_table_without_dollars_is_refused() {
        assert!(Pricing::new(PricingConfig { currencies: BTreeMap::new() }).is_err());
    }
}
