"""Buys something, over stubs generated from the shop's .proto files.

    pip install -r requirements.txt
    python shop_client.py --target 127.0.0.1:7000

Prints each step, checks each fact, and ends with status 0 if all of them hold. All four kinds of call are used.
"""

import argparse
import importlib
import sys
import tempfile
import time
import uuid
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_tools import protoc

PROTO_ROOT = Path(__file__).resolve().parents[2] / "proto"
GOOD_CARD = "4111 1111 1111 1111"
DECLINED_CARD = "4000 0000 0000 0002"
REFUSED_POSTCODE = "00000"
TIMEOUT_S = 30


class Stubs:
    """The generated modules: `pb.cart` has the messages of cart.proto, `pb.cart_rpc` its stub."""

    def __init__(self, folder):
        names = sorted(path.stem for path in (PROTO_ROOT / "shop/v1").glob("*.proto"))
        if not (folder / "shop/v1/cart_pb2.py").exists():
            generate(folder, names)
        sys.path.insert(0, str(folder))
        for name in names:
            setattr(self, name, importlib.import_module(f"shop.v1.{name}_pb2"))
            setattr(self, f"{name}_rpc", importlib.import_module(f"shop.v1.{name}_pb2_grpc"))


def generate(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    well_known = Path(protoc.__file__).parent / "_proto"
    failed = protoc.main(
        ["protoc", f"-I{PROTO_ROOT}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
        + [f"shop/v1/{name}.proto" for name in names]
    )
    if failed:
        raise SystemExit("protoc failed")


def step(text):
    print(f"-- {text}", flush=True)


def check(fact, text):
    """Like `assert`, but python -O keeps it."""
    if not fact:
        raise AssertionError(text)
    print(f"   ok: {text}", flush=True)


def refused(call, request, code):
    """Makes a call that must fail with `code`, and returns the details."""
    try:
        call(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        check(error.code() == code, f"refused with {error.code().name}: {error.details()}")
        return error.details()
    raise AssertionError(f"the call was not refused with {code.name}")


def run(channel, pb):
    user = f"user-{uuid.uuid4().hex[:12]}"
    catalog = pb.catalog_rpc.CatalogStub(channel)
    pricing = pb.pricing_rpc.PricingStub(channel)
    cart = pb.cart_rpc.CartStub(channel)
    checkout = pb.checkout_rpc.CheckoutStub(channel)
    orders = pb.orders_rpc.OrdersStub(channel)
    recommendations = pb.recommendations_rpc.RecommendationsStub(channel)
    reviews = pb.reviews_rpc.ReviewsStub(channel)
    support = pb.support_rpc.SupportStub(channel)

    step("health")
    health = health_pb2_grpc.HealthStub(channel)
    for service in ["", "shop.v1.Checkout"]:
        request = health_pb2.HealthCheckRequest(service=service)
        status = health.Check(request, timeout=TIMEOUT_S, wait_for_ready=True).status
        check(status == health_pb2.HealthCheckResponse.SERVING, f"{service or 'the server'} is serving")

    step("browse")
    products = catalog.List(pb.catalog.CatalogListRequest(), timeout=TIMEOUT_S).products
    check(len(products) == 24, "the catalog has 24 products")
    kitchen = catalog.List(
        pb.catalog.CatalogListRequest(category=pb.catalog.CATEGORY_KITCHEN), timeout=TIMEOUT_S
    ).products
    check(0 < len(kitchen) < 24, f"{len(kitchen)} of them are for the kitchen")
    found = catalog.Search(
        pb.catalog.CatalogSearchRequest(query="red mug", max_price_cents=2000), timeout=TIMEOUT_S
    ).products
    check([product.id for product in found] == ["mug"], "a search finds the red mug")
    check(found[0].attributes["colour"] == "red", "the mug's colour is red")
    refused(catalog.Get, pb.catalog.CatalogGetRequest(product_id="unicorn"), grpc.StatusCode.NOT_FOUND)
    similar = recommendations.List(
        pb.recommendations.RecommendationsListRequest(product_ids=["mug"], limit=3), timeout=TIMEOUT_S
    ).product_ids
    check(len(similar) == 3 and "mug" not in similar, f"who likes the mug may like {', '.join(similar)}")

    step("price")
    quote = pricing.Quote(
        pb.pricing.QuoteRequest(
            currency_code="EUR",
            items=[pb.pricing.QuoteItem(product_id="mug", unit_price=found[0].price, quantity=2)],
        ),
        timeout=TIMEOUT_S,
    )
    check(quote.total.minor_units == 2 * 1150, "two mugs are 23.00 EUR")
    refused(pricing.Quote, pb.pricing.QuoteRequest(currency_code="XXX"), grpc.StatusCode.INVALID_ARGUMENT)

    step("fill the cart")
    add = pb.cart.CartAddRequest
    cart.Add(add(user_id=user, product_id="mug", quantity=1), timeout=TIMEOUT_S)
    cart.Add(add(user_id=user, product_id="kettle", quantity=1), timeout=TIMEOUT_S)
    lines = cart.Add(add(user_id=user, product_id="mug", quantity=1), timeout=TIMEOUT_S).lines
    check([(line.product_id, line.quantity) for line in lines] == [("kettle", 1), ("mug", 2)], "1 kettle, 2 mugs")
    refused(cart.Add, add(user_id=user, product_id="mug", quantity=0), grpc.StatusCode.INVALID_ARGUMENT)
    refused(cart.Add, add(user_id=user, product_id="unicorn", quantity=1), grpc.StatusCode.NOT_FOUND)

    def order(card=GOOD_CARD, year=2099, postcode="10115", key=None):
        return pb.checkout.PlaceOrderRequest(
            user_id=user,
            currency_code="EUR",
            address=pb.shipping.Address(
                recipient="Ada", street="Invalidenstr. 1", city="Berlin", postcode=postcode, country_code="DE"
            ),
            card=pb.payment.Card(number=card, expiry_month=12, expiry_year=year),
            idempotency_key=key,
        )

    def cart_is_kept():
        kept = cart.Get(pb.cart.CartGetRequest(user_id=user), timeout=TIMEOUT_S).lines
        mine = orders.List(pb.orders.OrdersListRequest(user_id=user), timeout=TIMEOUT_S).orders
        check(len(kept) == 2 and not mine, "the cart stays, and there is no order")

    step("orders that fail")
    details = refused(checkout.PlaceOrder, order(card=DECLINED_CARD), grpc.StatusCode.FAILED_PRECONDITION)
    check("0002" in details and DECLINED_CARD.replace(" ", "") not in details, "only the last four digits are told")
    refused(checkout.PlaceOrder, order(year=2020), grpc.StatusCode.FAILED_PRECONDITION)
    refused(checkout.PlaceOrder, order(card="4111 1111 1111 1112"), grpc.StatusCode.INVALID_ARGUMENT)
    details = refused(checkout.PlaceOrder, order(postcode=REFUSED_POSTCODE), grpc.StatusCode.FAILED_PRECONDITION)
    check("refunded" in details, "what was paid is given back")
    cart_is_kept()

    step("place an order")
    placed = checkout.PlaceOrder(order(key="first"), timeout=TIMEOUT_S).order
    check(placed.user_id == user and placed.id.startswith("ORDER-"), f"it is {placed.id}")
    # 2 x 11.50 + 72.68, and 4.90 + 2 kg x 1.50 US dollars of shipping
    check(placed.total.minor_units == 2 * 1150 + 7268 + 727, "it costs 102.95 EUR with shipping")
    again = checkout.PlaceOrder(order(key="first"), timeout=TIMEOUT_S).order
    check(again.id == placed.id, "asking again with the same key gives the same order")
    lines = cart.Get(pb.cart.CartGetRequest(user_id=user), timeout=TIMEOUT_S).lines
    check(not lines, "the cart is empty")
    refused(checkout.PlaceOrder, order(), grpc.StatusCode.FAILED_PRECONDITION)

    step("follow it (server stream)")
    seen = []
    for update in orders.Watch(pb.orders.WatchRequest(order_id=placed.id), timeout=TIMEOUT_S):
        print(f"   {pb.orders.OrderStatus.Name(update.status)}", flush=True)
        seen.append(update.status)
    check(seen == list(range(seen[0], pb.orders.ORDER_STATUS_DELIVERED + 1)), "it was delivered, one step at a time")
    mine = orders.List(pb.orders.OrdersListRequest(user_id=user), timeout=TIMEOUT_S).orders
    check([order.id for order in mine] == [placed.id], "it is the only order")
    check(mine[0].HasField("tracking_id"), f"it came as parcel {mine[0].tracking_id}")

    step("review it (client stream)")

    def review(product, rating, text=None):
        return pb.reviews.UploadRequest(
            review=pb.reviews.Review(product_id=product, user_id=user, rating=rating, text=text)
        )

    before = reviews.List(pb.reviews.ReviewsListRequest(product_id="mug"), timeout=TIMEOUT_S).summary.count
    upload = [review("mug", 5, "Falls, chips, goes on."), review("mug", 4), review("kettle", 3)]
    summary = reviews.Upload(iter(upload), timeout=TIMEOUT_S).summary
    check((summary.count, summary.average_rating) == (3, 4.0), "3 reviews, 4.0 on average")
    mug = reviews.List(pb.reviews.ReviewsListRequest(product_id="mug"), timeout=TIMEOUT_S)
    check(mug.summary.count == before + 2 and mug.reviews[0].rating == 4, "the mug has 2 more, the newest first")

    def upload_all(requests, timeout):
        return reviews.Upload(iter(requests), timeout=timeout)

    refused(upload_all, [review("mug", 5), review("mug", 6)], grpc.StatusCode.INVALID_ARGUMENT)
    after = reviews.List(pb.reviews.ReviewsListRequest(product_id="mug"), timeout=TIMEOUT_S).summary.count
    check(after == before + 2, "a refused upload leaves nothing behind")

    step("chat (bidirectional stream)")

    def say(text, user_id=user):
        return pb.support.ChatRequest(user_id=user_id, text=text)

    messages = [
        say("Hello!"),
        say(f"where is my order {placed.id}?"),
        say(f"where is my order {placed.id}?", user_id="mallory"),
        say("Can I return it?"),
    ]
    answers = []
    for message, answer in zip(messages, support.Chat(iter(messages), timeout=TIMEOUT_S)):
        print(f"   {message.user_id}: {message.text}\n   shop: {answer.text}", flush=True)
        answers.append(answer)
    check(len(answers) == len(messages), "each message has an answer")
    check(answers[1].order.status == pb.orders.ORDER_STATUS_DELIVERED, "the assistant knows that it was delivered")
    check(answers[2].WhichOneof("attachment") is None, "but tells nobody else")
    check(answers[3].WhichOneof("attachment") == "link", "and has a page on returns")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="127.0.0.1:7000", help="HOST:PORT of the shop (default: %(default)s)")
    parser.add_argument("--stubs", type=Path, help="folder for the generated stubs; they are made when missing")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary, grpc.insecure_channel(arguments.target) as channel:
        run(channel, Stubs(arguments.stubs or Path(temporary)))
    print(f"all is well, after {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
