//! Sends parcels.

use std::collections::BTreeSet;

use outpost::{BoxError, Config, Context, Json, State};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use crate::{
    check,
    ids::Ids,
    recent::Recent,
    v1::{
        Address, Money, ShipRequest, ShipResponse, ShippingCancelRequest, ShippingQuoteRequest, ShippingQuoteResponse,
        shipping_server::{self, ShippingServer},
    },
};

/// Where parcels go and what they cost, under `[modules.shipping]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShippingConfig {
    /// Price of a parcel before its weight, in US cents.
    pub base_cents: u32,
    /// Price of each kilogram begun, in US cents.
    pub per_kilogram_cents: u32,
    /// Countries served, as ISO 3166 codes of two letters.
    pub countries: BTreeSet<String>,
    /// Postcodes that the carrier refuses. It finds out only when it gets the parcel, as carriers do.
    pub refused_postcodes: BTreeSet<String>,
    /// How many parcels are remembered, to be cancelled or asked for again. The oldest are forgotten first.
    pub max_parcels: usize,
}

impl Default for ShippingConfig {
    fn default() -> Self {
        let countries = ["AT", "CH", "DE", "FR", "GB", "JP", "KW", "NL", "US"];
        Self {
            base_cents: 490,
            per_kilogram_cents: 150,
            countries: countries.map(str::to_owned).into(),
            refused_postcodes: ["00000".to_owned()].into(),
            max_parcels: 10_000,
        }
    }
}

/// Builds the module. It calls no other.
///
/// # Errors
/// Never.
pub async fn new(
    ctx: Context,
    config: Config<ShippingConfig>,
    parcels: State<Json<Parcels>>,
) -> Result<ShippingServer<Shipping>, BoxError> {
    Ok(ShippingServer::new(Shipping { config: config.into_inner(), ids: Ids::new("PARCEL", ctx), parcels }))
}

/// The module. It keeps the last `max_parcels` parcels: of each, its reference and its tracking id.
#[derive(Debug)]
pub struct Shipping {
    config: ShippingConfig,
    ids: Ids,
    parcels: State<Json<Parcels>>,
}

/// The parcels that were sent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parcels {
    /// The tracking id of each, by its reference.
    sent: Recent<String>,
}

#[tonic::async_trait]
impl shipping_server::Shipping for Shipping {
    async fn quote(&self, request: Request<ShippingQuoteRequest>) -> Result<Response<ShippingQuoteResponse>, Status> {
        let ShippingQuoteRequest { address, weight_grams } = request.into_inner();
        let address = check::present("address", address)?;
        self.config.serves(&address)?;
        Ok(Response::new(ShippingQuoteResponse {
            cost: Some(Money::us_cents(self.config.cost_cents(weight_grams))),
            working_days: working_days(weight_grams),
        }))
    }

    async fn ship(&self, request: Request<ShipRequest>) -> Result<Response<ShipResponse>, Status> {
        let ShipRequest { reference, address, weight_grams: _ } = request.into_inner();
        check::id("reference", &reference)?;
        let address = check::present("address", address)?;
        self.config.serves(&address)?;
        if self.config.refused_postcodes.contains(&address.postcode) {
            return Err(Status::failed_precondition(format!("the carrier does not deliver to {}", address.postcode)));
        }
        let mut parcels = self.parcels.write();
        if let Some(sent_before) = parcels.sent.get(&reference) {
            return Ok(Response::new(ShipResponse { tracking_id: sent_before.clone() }));
        }
        let tracking_id = self.ids.fresh();
        parcels.sent.insert(reference, tracking_id.clone(), self.config.max_parcels);
        Ok(Response::new(ShipResponse { tracking_id }))
    }

    async fn cancel(&self, request: Request<ShippingCancelRequest>) -> Result<Response<()>, Status> {
        let reference = request.into_inner().reference;
        self.parcels.write().sent.remove(&reference);
        Ok(Response::new(()))
    }
}

impl ShippingConfig {
    fn serves(&self, address: &Address) -> Result<(), Status> {
        for (field, value) in [
            ("recipient", &address.recipient),
            ("street", &address.street),
            ("city", &address.city),
            ("postcode", &address.postcode),
            ("country_code", &address.country_code),
        ] {
            if value.trim().is_empty() {
                return Err(Status::invalid_argument(format!("address.{field} is missing")));
            }
        }
        let country = &address.country_code;
        if !self.countries.contains(country) {
            return Err(Status::failed_precondition(format!("the shop does not ship to {country}")));
        }
        Ok(())
    }

    fn cost_cents(&self, weight_grams: u32) -> i64 {
        let kilograms = i64::from(weight_grams.div_ceil(1_000));
        i64::from(self.base_cents) + kilograms * i64::from(self.per_kilogram_cents)
    }
}

/// Heavy parcels go by the slow lorry.
fn working_days(weight_grams: u32) -> u32 {
    if weight_grams <= 5_000 { 2 } else { 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kilogram_begun_is_paid_for() {
        let config = ShippingConfig::default();
        let cost = [0, 1, 1_000, 1_001].map(|grams| config.cost_cents(grams));
        assert_eq!(cost, [490, 640, 640, 790]);
        assert!(config.cost_cents(u32::MAX) > 0);
    }

    #[test]
    fn an_incomplete_address_is_named_by_its_field() {
        let address = Address { recipient: "Ada".into(), street: " ".into(), ..Address::default() };
        let error = ShippingConfig::default().serves(&address).unwrap_err();
        assert_eq!(error.message(), "address.street is missing");
    }
}
