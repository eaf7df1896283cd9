"""Uses the shop without a pause, through each of many nodes, and counts what fails.

    pip install -r requirements.txt
    python loop_client.py --target 127.0.0.1:7000 --target 127.0.0.1:7010 --seconds 30

Without --seconds it goes on until SIGTERM or Ctrl-C. Prints each failure, and how often each method was called through
each target; ends with status 1 if a call failed, or a target was never called.
"""

import argparse
import collections
import signal
import sys
import tempfile
import threading
import uuid
from pathlib import Path

import grpc
from shop_client import GOOD_CARD, Stubs

TIMEOUT_S = 10


def calls_of(pb, channel, user):
    """What a buyer does, one call at a time: a name, and a function that makes the call."""
    cart = pb.cart_rpc.CartStub(channel)
    catalog = pb.catalog_rpc.CatalogStub(channel)
    checkout = pb.checkout_rpc.CheckoutStub(channel)
    support = pb.support_rpc.SupportStub(channel)
    address = pb.shipping.Address(
        recipient="Ada", street="1 Analytical Way", city="London", postcode="N1 9GU", country_code="GB"
    )
    card = pb.payment.Card(number=GOOD_CARD, expiry_month=12, expiry_year=2099)
    order = pb.checkout.PlaceOrderRequest(user_id=user, currency_code="EUR", address=address, card=card)
    add = pb.cart.CartAddRequest(user_id=user, product_id="mug", quantity=1)
    message = pb.support.ChatRequest(user_id=user, text="Hello!")

    def chat():
        answers = list(support.Chat(iter([message]), timeout=TIMEOUT_S))
        if len(answers) != 1:
            raise AssertionError(f"{len(answers)} answers to one message")

    return [
        ("Catalog.Get", lambda: catalog.Get(pb.catalog.CatalogGetRequest(product_id="mug"), timeout=TIMEOUT_S)),
        ("Cart.Add", lambda: cart.Add(add, timeout=TIMEOUT_S)),
        ("Checkout.PlaceOrder", lambda: checkout.PlaceOrder(order, timeout=TIMEOUT_S)),
        ("Support.Chat", chat),
    ]


def use(target, pb, stop, counts, failures):
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
        calls = calls_of(pb, channel, f"user-{uuid.uuid4().hex[:12]}")
        while not stop.is_set():
            for name, call in calls:
                try:
                    call()
                except (grpc.RpcError, AssertionError) as error:
                    text = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)
                    print(f"FAILED {name} through {target}: {text}", flush=True)
                    failures.append(text)
                counts[target, name] += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", required=True, help="HOST:PORT of a node; may be given many times")
    parser.add_argument("--seconds", type=float, help="how long to go on (default: until it is told to stop)")
    arguments = parser.parse_args()
    stop = threading.Event()
    told = {signal.SIGTERM, signal.SIGINT}
    # Waited for, not handled: a handler may run while its thread holds the lock that it needs.
    signal.pthread_sigmask(signal.SIG_BLOCK, told)
    counts, failures = collections.Counter(), []
    with tempfile.TemporaryDirectory() as temporary:
        pb = Stubs(Path(temporary))
        threads = [
            threading.Thread(target=use, args=(target, pb, stop, counts, failures)) for target in arguments.target
        ]
        for thread in threads:
            thread.start()
        print("calling", flush=True)
        if arguments.seconds is None:
            signal.sigwait(told)
        else:
            signal.sigtimedwait(told, arguments.seconds)
        stop.set()
        for thread in threads:
            thread.join()
    for (target, name), count in sorted(counts.items()):
        print(f"{target} {name}: {count} calls")
    print(f"{sum(counts.values())} calls, {len(failures)} failed")
    if failures or {target for target, _ in counts} != set(arguments.target):
        sys.exit(1)


if __name__ == "__main__":
    main()
