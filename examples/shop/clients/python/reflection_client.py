"""Buys something, knowing nothing of the shop but what it tells of itself: server reflection, and no stubs.

    pip install -r requirements.txt
    python reflection_client.py --target 127.0.0.1:7000

Prints each step, checks each fact, and ends with status 0 if all of them hold.
"""

import argparse
import uuid

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

TIMEOUT_S = 30


class Reflected:
    """Calls any method of a server. Messages are dictionaries, with the names of the .proto files."""

    def __init__(self, channel):
        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def services(self):
        return list(self._database.get_services())

    def call(self, path, request):
        """Calls "shop.v1.Cart/Add". A stream is a list here, and an iterator when it is answered."""
        service, name = path.split("/")
        method = self._pool.FindServiceByName(service).FindMethodByName(name)
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        kinds = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }
        make = kinds[method.client_streaming, method.server_streaming]
        remote = make(
            f"/{path}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )

        def message(fields):
            return json_format.ParseDict(fields, request_class())

        outgoing = iter([message(fields) for fields in request]) if method.client_streaming else message(request)
        answer = remote(outgoing, timeout=TIMEOUT_S)
        return map(fields_of, answer) if method.server_streaming else fields_of(answer)


def fields_of(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def step(text):
    print(f"-- {text}", flush=True)


def check(fact, text):
    """Like `assert`, but python -O keeps it."""
    if not fact:
        raise AssertionError(text)
    print(f"   ok: {text}", flush=True)


def run(channel):
    grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
    shop = Reflected(channel)
    user = f"user-{uuid.uuid4().hex[:12]}"

    step("what is there")
    services = [name for name in shop.services() if name.startswith("shop.v1.")]
    print("   " + ", ".join(services))
    check(len(services) == 10, "the shop has ten services")

    step("place an order")
    found = shop.call("shop.v1.Catalog/Search", {"query": "lighthouse"})["products"]
    check([product["id"] for product in found] == ["novel"], "a search finds the novel with the lighthouse")
    shop.call("shop.v1.Cart/Add", {"user_id": user, "product_id": "novel", "quantity": 2})
    order = {
        "user_id": user,
        "currency_code": "JPY",
        "address": {
            "recipient": "Ada",
            "street": "1-1 Chiyoda",
            "city": "Tokyo",
            "postcode": "100-0001",
            "country_code": "JP",
        },
        "card": {"number": "4000000000000002", "expiry_month": 12, "expiry_year": 2099},
    }
    try:
        shop.call("shop.v1.Checkout/PlaceOrder", order)
        raise AssertionError("the card was not declined")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.FAILED_PRECONDITION, f"refused: {error.details()}")
    order["card"]["number"] = "5555555555554444"
    placed = shop.call("shop.v1.Checkout/PlaceOrder", order)["order"]
    # Two of 1965 yen, and 6.40 US dollars of shipping. JSON has 64-bit numbers as strings.
    check(placed["total"] == {"currency_code": "JPY", "minor_units": "4898"}, f"{placed['id']} costs 4898 yen")

    step("follow it (server stream)")
    seen = []
    for update in shop.call("shop.v1.Orders/Watch", {"order_id": placed["id"]}):
        print(f"   {update['status']}", flush=True)
        seen.append(update["status"])
    line = ["PLACED", "PAID", "PACKED", "SHIPPED", "DELIVERED"]
    check(seen == [f"ORDER_STATUS_{status}" for status in line][-len(seen) :], "it was delivered, one step at a time")

    step("review it (client stream)")
    review = {"product_id": "novel", "user_id": user, "text": "Forty years went by in a day."}
    uploaded = shop.call("shop.v1.Reviews/Upload", [{"review": {**review, "rating": rating}} for rating in (5, 4)])
    check(uploaded["summary"] == {"count": 2, "average_rating": 4.5}, "2 reviews, 4.5 on average")

    step("chat (bidirectional stream)")
    texts = ["Hi!", f"where is my order {placed['id']}"]
    answers = list(shop.call("shop.v1.Support/Chat", [{"user_id": user, "text": text} for text in texts]))
    for text, answer in zip(texts, answers):
        print(f"   user: {text}\n   shop: {answer['text']}")
    check(len(answers) == 2, "each message has an answer")
    check(answers[1]["order"]["id"] == placed["id"], "the assistant knows the order")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="127.0.0.1:7000", help="HOST:PORT of the shop (default: %(default)s)")
    arguments = parser.parse_args()
    with grpc.insecure_channel(arguments.target) as channel:
        run(channel)
    print("all is well")


if __name__ == "__main__":
    main()
