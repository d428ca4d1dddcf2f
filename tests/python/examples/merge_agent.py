"""One agent of a run at the merge service, as a training loop would hold it. The stubs are made from proto/:

    python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/snapshot.proto
    python merge_agent.py 127.0.0.1:7070 my-run 0 3 runs/agent0
"""

import sys

import grpc
import snapshot_pb2 as messages
from snapshot_pb2_grpc import MergingStub


def train(own, others):
    """Where a round of training goes: mix with the others' weights as the table says, then take your steps."""
    print(f"mix: {own:.2f} of my own, " + ", ".join(f"{peer.weight:.2f} of {peer.agent}" for peer in others))


def main(address, run, agent, agents, snapshot):
    merging = MergingStub(grpc.insecure_channel(address))
    # Every agent may announce: the same announcement again changes nothing.
    rule, mixing = messages.Rule(all=messages.All()), messages.Mixing(topology="random", peers=0.2, seed=1)
    how = dict(rule=rule, mixing=mixing, weighting=messages.WEIGHTING_EXAMPLES)
    merging.Announce(messages.AnnounceRequest(run=run, agents=int(agents), **how))
    for number in range(5):
        table = merging.Peers(messages.PeersRequest(run=run, round=number))
        row = next(row for row in table.rows if row.agent == agent)
        train(row.own_weight, row.peers)
    seen = 100 * (int(agent) + 1)
    publication = messages.PublishRequest(run=run, agent=agent, uri=snapshot, step=5, examples=seen)
    merging.Publish(publication, wait_for_ready=True, timeout=600)
    for state in merging.Watch(messages.GetRequest(run=run)):
        print(state.message)
    print(state.merged_uri)


if __name__ == "__main__":
    main(*sys.argv[1:])
