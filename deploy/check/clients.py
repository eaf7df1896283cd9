"""The shop's loop client, for targets that are lists of addresses: `ipv4:10.0.0.1:7000,10.0.0.2:7000`.

    clients.py FOLDER ARGUMENT...       FOLDER has loop_client.py; the rest are its arguments
"""

import sys

import grpc

sys.path.insert(0, sys.argv.pop(1))
import loop_client  # noqa: E402

plain = grpc.insecure_channel


def channel(target, options=()):
    # Without it, the list would be the name that is asked for, which is no name.
    return plain(target, [*options, ("grpc.default_authority", "shop:7000")])


grpc.insecure_channel = channel
loop_client.main()
