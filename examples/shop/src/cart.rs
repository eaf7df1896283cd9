//! What each user is about to buy.

use std::collections::BTreeMap;

use outpost::{BoxError, Config, Json, State};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use crate::{
    check,
    v1::{
        CartAddRequest, CartAddResponse, CartEmptyRequest, CartGetRequest, CartGetResponse, CartLine,
        CatalogGetRequest, CatalogHandle,
        cart_server::{self, CartServer},
    },
};

/// The bounds of what is kept, under `[modules.cart]`. An addition beyond one of them is RESOURCE_EXHAUSTED.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CartConfig {
    /// Most users who may have something in their cart at once.
    pub max_carts: usize,
    /// Most different products in one cart.
    pub max_lines: usize,
    /// Most pieces of one product in one cart.
    pub max_quantity: u32,
}

impl Default for CartConfig {
    fn default() -> Self {
        Self { max_carts: 10_000, max_lines: 50, max_quantity: 99 }
    }
}

/// Builds the module. It asks the catalog whether a product exists.
///
/// # Errors
/// Never.
pub async fn new(
    config: Config<CartConfig>,
    carts: State<Json<Carts>>,
    catalog: CatalogHandle,
) -> Result<CartServer<Cart>, BoxError> {
    Ok(CartServer::new(Cart { bounds: config.into_inner(), carts, catalog }))
}

/// The module. It keeps at most `max_carts` × `max_lines` lines.
#[derive(Debug)]
pub struct Cart {
    bounds: CartConfig,
    carts: State<Json<Carts>>,
    catalog: CatalogHandle,
}

#[tonic::async_trait]
impl cart_server::Cart for Cart {
    async fn add(&self, request: Request<CartAddRequest>) -> Result<Response<CartAddResponse>, Status> {
        let CartAddRequest { user_id, product_id, quantity } = request.into_inner();
        check::id("user_id", &user_id)?;
        if quantity == 0 {
            return Err(Status::invalid_argument("quantity must be at least 1"));
        }
        self.catalog.get(CatalogGetRequest { product_id: product_id.clone() }).await?;
        let lines = self.carts.write().add(user_id, product_id, quantity, &self.bounds)?;
        Ok(Response::new(CartAddResponse { lines }))
    }

    async fn get(&self, request: Request<CartGetRequest>) -> Result<Response<CartGetResponse>, Status> {
        let user_id = request.into_inner().user_id;
        check::id("user_id", &user_id)?;
        let lines = self.carts.read().lines(&user_id);
        Ok(Response::new(CartGetResponse { lines }))
    }

    async fn empty(&self, request: Request<CartEmptyRequest>) -> Result<Response<()>, Status> {
        let user_id = request.into_inner().user_id;
        check::id("user_id", &user_id)?;
        self.carts.write().by_user.remove(&user_id);
        Ok(Response::new(()))
    }
}

/// All carts. Each has at least one line: an empty cart is no cart.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Carts {
    /// The quantity of each product, of each user.
    by_user: BTreeMap<String, BTreeMap<String, u32>>,
}

impl Carts {
    fn add(
        &mut self,
        user_id: String,
        product_id: String,
        quantity: u32,
        bounds: &CartConfig,
    ) -> Result<Vec<CartLine>, Status> {
        let &CartConfig { max_carts, max_lines, max_quantity } = bounds;
        let cart = self.by_user.get(&user_id);
        if cart.is_none() && self.by_user.len() >= max_carts {
            return Err(Status::resource_exhausted(format!("{max_carts} carts are in use")));
        }
        let (lines, there) = cart.map_or((0, None), |cart| (cart.len(), cart.get(&product_id)));
        if there.is_none() && lines >= max_lines {
            return Err(Status::resource_exhausted(format!("a cart holds {max_lines} lines")));
        }
        let quantity = there.copied().unwrap_or(0).saturating_add(quantity);
        if quantity > max_quantity {
            return Err(Status::resource_exhausted(format!("a cart holds {max_quantity} pieces of one product")));
        }
        self.by_user.entry(user_id.clone()).or_default().insert(product_id, quantity);
        Ok(self.lines(&user_id))
    }

    fn lines(&self, user_id: &str) -> Vec<CartLine> {
        let lines = self.by_user.get(user_id).into_iter().flatten();
        lines.map(|(product_id, quantity)| CartLine { product_id: product_id.clone(), quantity: *quantity }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: CartConfig = CartConfig { max_carts: 1, max_lines: 2, max_quantity: 5 };

    #[test]
    fn adding_a_product_again_raises_its_quantity() {
        let mut carts = Carts::default();
        carts.add("ada".into(), "mug".into(), 2, &BOUNDS).unwrap();
        let lines = carts.add("ada".into(), "mug".into(), 3, &BOUNDS).unwrap();
        assert_eq!(lines, [CartLine { product_id: "mug".into(), quantity: 5 }]);
    }

    #[test]
    fn a_refused_addition_changes_nothing() {
        let mut carts = Carts::default();
        carts.add("ada".into(), "mug".into(), 1, &BOUNDS).unwrap();
        carts.add("ada".into(), "knife".into(), 1, &BOUNDS).unwrap();
        let before = carts.lines("ada");
        for (user, product, quantity) in [("ada", "tent", 1), ("ada", "mug", 5), ("bob", "mug", 1)] {
            let error = carts.add(user.into(), product.into(), quantity, &BOUNDS).unwrap_err();
            assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{user} {product}");
        }
        assert_eq!(carts.lines("ada"), before);
        assert!(carts.lines("bob").is_empty());
    }
    /// As the first version with state that moves has written it.
    const WRITTEN: &str = r#"{"by_user":{"ada":{"mug":2}}}"#;

    #[tokio::test]
    async fn carts_that_another_version_wrote_are_read() {
        let carts = State::new(Json::new(Carts::default()));
        let newer = r#"{"by_user":{"ada":{"mug":2}},"of_a_later_version":[1]}"#;
        for written in [WRITTEN, newer] {
            State::load(&carts, written).await.unwrap();
            assert_eq!(State::save(&carts).await.unwrap(), WRITTEN);
        }
        State::load(&carts, "{}").await.unwrap();
        assert!(carts.read().by_user.is_empty());
    }
}
