//! Generates messages, servers and handles from the shop's `.proto` files. Needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    outpost_build::compile(&[
        "proto/shop/state/v1/state.proto",
        "proto/shop/v1/cart.proto",
        "proto/shop/v1/catalog.proto",
        "proto/shop/v1/checkout.proto",
        "proto/shop/v1/money.proto",
        "proto/shop/v1/orders.proto",
        "proto/shop/v1/payment.proto",
        "proto/shop/v1/pricing.proto",
        "proto/shop/v1/recommendations.proto",
        "proto/shop/v1/reviews.proto",
        "proto/shop/v1/shipping.proto",
        "proto/shop/v1/support.proto",
    ])?;
    Ok(())
}
