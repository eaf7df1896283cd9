//! Turns a cart into an order.
//!
//! Nothing here is kept between calls. A call that breaks off half-way, say because the caller went away, is taken up
//! again by the next with the same idempotency key: payment, shipping and orders each answer with what they did before.

use outpost::{BoxError, Context};
use tonic::{Code, Request, Response, Status};

use crate::{
    check,
    ids::Ids,
    v1::{
        Address, CartEmptyRequest, CartGetRequest, CartHandle, CartLine, CatalogGetRequest, CatalogHandle, Charge,
        ChargeRequest, Order, OrdersCreateRequest, OrdersGetRequest, OrdersHandle, PaymentHandle, PlaceOrderRequest,
        PlaceOrderResponse, PricingHandle, QuoteItem, QuoteRequest, QuoteResponse, RefundRequest, ShipRequest,
        ShippingCancelRequest, ShippingHandle, ShippingQuoteRequest,
        checkout_server::{self, CheckoutServer},
        orders_get_request::Selector,
    },
};

/// Builds the module. Every other that an order needs is named here.
///
/// # Errors
/// Never.
pub async fn new(
    ctx: Context,
    cart: CartHandle,
    catalog: CatalogHandle,
    shipping: ShippingHandle,
    pricing: PricingHandle,
    payment: PaymentHandle,
    orders: OrdersHandle,
) -> Result<CheckoutServer<Checkout>, BoxError> {
    let keys = Ids::new("CHECKOUT", ctx);
    Ok(CheckoutServer::new(Checkout { cart, catalog, shipping, pricing, payment, orders, keys }))
}

/// The module. It keeps nothing.
#[derive(Debug)]
pub struct Checkout {
    cart: CartHandle,
    catalog: CatalogHandle,
    shipping: ShippingHandle,
    pricing: PricingHandle,
    payment: PaymentHandle,
    orders: OrdersHandle,
    keys: Ids,
}

#[tonic::async_trait]
impl checkout_server::Checkout for Checkout {
    async fn place_order(&self, request: Request<PlaceOrderRequest>) -> Result<Response<PlaceOrderResponse>, Status> {
        let request = request.into_inner();
        let user_id = request.user_id;
        let address = check::present("address", request.address)?;
        let card = check::present("card", request.card)?;
        let key = self.key(&user_id, request.idempotency_key)?;

        let cart = self.cart.get(CartGetRequest { user_id: user_id.clone() }).await?;
        let lines = cart.into_inner().lines;
        if lines.is_empty() {
            // Either there is nothing to order, or this is the second try of a call whose answer was lost.
            let order = self.placed_before(&key).await?;
            return Ok(Response::new(PlaceOrderResponse { order: Some(order) }));
        }
        let parcel = self.pack(lines, address).await?;
        let quote = self.quote(&parcel, request.currency_code).await?;

        let charge = self.payment.charge(ChargeRequest {
            idempotency_key: key.clone(),
            amount: quote.total.clone(),
            card: Some(card),
        });
        let charge = check::answered("charge", charge.await?.into_inner().charge)?;

        let order = match self.fulfil(key, &user_id, parcel, quote, &charge).await {
            Ok(order) => order,
            Err(error) => return Err(self.undo(&charge, error).await),
        };
        // The order stands. A cart that could not be emptied is a nuisance, and no reason to tell the buyer otherwise.
        if let Err(error) = self.cart.empty(CartEmptyRequest { user_id }).await {
            tracing::warn!(order_id = order.id, %error, "failed to empty the cart");
        }
        Ok(Response::new(PlaceOrderResponse { order: Some(order) }))
    }
}

/// What goes into the box, and where the box goes.
struct Parcel {
    items: Vec<QuoteItem>,
    weight_grams: u32,
    address: Address,
}

impl Checkout {
    /// The caller's key, made different from every other user's; or else a new one. No id holds a `/`, so none is both.
    fn key(&self, user_id: &str, from_caller: Option<String>) -> Result<String, Status> {
        check::id("user_id", user_id)?;
        let Some(key) = from_caller else { return Ok(self.keys.fresh()) };
        check::id("idempotency_key", &key)?;
        Ok(format!("{user_id}/{key}"))
    }

    async fn placed_before(&self, key: &str) -> Result<Order, Status> {
        let selector = Some(Selector::IdempotencyKey(key.to_owned()));
        match self.orders.get(OrdersGetRequest { selector }).await {
            Ok(found) => check::answered("order", found.into_inner().order),
            Err(error) if error.code() == Code::NotFound => Err(Status::failed_precondition("the cart is empty")),
            Err(error) => Err(error),
        }
    }

    /// Looks up today's price and weight of each product.
    async fn pack(&self, lines: Vec<CartLine>, address: Address) -> Result<Parcel, Status> {
        let mut parcel = Parcel { items: Vec::with_capacity(lines.len()), weight_grams: 0, address };
        for CartLine { product_id, quantity } in lines {
            let request = CatalogGetRequest { product_id: product_id.clone() };
            let found = self.catalog.get(request).await.map_err(|error| match error.code() {
                Code::NotFound => Status::failed_precondition(format!("`{product_id}` is no longer sold")),
                _ => error,
            })?;
            let product = check::answered("product", found.into_inner().product)?;
            let weight = product.weight_grams.saturating_mul(quantity);
            parcel.weight_grams = parcel.weight_grams.saturating_add(weight);
            parcel.items.push(QuoteItem { product_id, unit_price: product.price, quantity });
        }
        Ok(parcel)
    }

    /// What the parcel and its shipping cost in the buyer's currency.
    async fn quote(&self, parcel: &Parcel, currency_code: String) -> Result<QuoteResponse, Status> {
        let shipping = self
            .shipping
            .quote(ShippingQuoteRequest { address: Some(parcel.address.clone()), weight_grams: parcel.weight_grams });
        let shipping = shipping.await?.into_inner();
        let quote =
            self.pricing.quote(QuoteRequest { currency_code, items: parcel.items.clone(), shipping: shipping.cost });
        Ok(quote.await?.into_inner())
    }

    /// Sends what was paid for, and records it.
    async fn fulfil(
        &self,
        key: String,
        user_id: &str,
        parcel: Parcel,
        quote: QuoteResponse,
        charge: &Charge,
    ) -> Result<Order, Status> {
        let shipped = self.shipping.ship(ShipRequest {
            reference: charge.id.clone(),
            address: Some(parcel.address),
            weight_grams: parcel.weight_grams,
        });
        let tracking_id = shipped.await?.into_inner().tracking_id;
        let created = self.orders.create(OrdersCreateRequest {
            idempotency_key: key,
            user_id: user_id.to_owned(),
            items: quote.items,
            total: quote.total,
            charge_id: charge.id.clone(),
            tracking_id,
        });
        check::answered("order", created.await?.into_inner().order)
    }

    /// Stops the parcel, which may have been sent even if the answer was lost, and gives the money back. Returns what to
    /// tell the buyer.
    async fn undo(&self, charge: &Charge, cause: Status) -> Status {
        let charge_id = charge.id.as_str();
        let cancelled = self.shipping.cancel(ShippingCancelRequest { reference: charge_id.into() });
        if let Err(error) = cancelled.await {
            tracing::error!(charge_id, %error, "failed to cancel the parcel of an order that failed");
        }
        let refunded = self.payment.refund(RefundRequest { charge_id: charge_id.into() });
        let money = match refunded.await {
            Ok(_) => "your payment was refunded",
            Err(error) => {
                tracing::error!(charge_id, %error, "failed to refund an order that failed");
                "your payment will be refunded by hand"
            }
        };
        Status::new(cause.code(), format!("{}; {money}", cause.message()))
    }
}
