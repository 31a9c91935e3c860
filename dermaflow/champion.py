"""The champion: which version the ledger says is in use, and an alias that follows the ledger.

Every move is written to the ledger first, which says what is to be moved, and then done (`settle`). Whoever finds the two
apart, after a crash or because somebody moved the alias by hand, lets the alias follow again: the ledger decides.

A version of either model is known by the number of the ledger entry that it was made for, which stands on it as a tag from
the beginning: where several carry it, the first counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dermaflow import registry
from dermaflow.access import ensure_model
from dermaflow.errors import InputError
from dermaflow.ledger import Entry, HeadMovedError, Kind, Ledger, account
from dermaflow.refusals import ADMINISTRATOR, APPROVER, RefusedError, refusal, refusals_told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from dermaflow.records import Version

ENTRY_TAG = registry.TAG + "ledger_entry"
MOVER_TAG = registry.TAG + "mover"  # on the model dermaflow: who was last about to move the champion
MOVES = ("promotion", "rollback")
MEND = "look with: dermaflow verify, and mend with: dermaflow verify --repair"


def last_move(entries: Sequence[Entry]) -> Entry | None:
    """The last entry that moved the champion."""
    return next((entry for entry in reversed(entries) if entry.kind in MOVES), None)


def promotion_in_use(entries: Sequence[Entry]) -> Entry | None:
    """The promotion whose copy is champion as the ledger has it; None where there is no champion yet."""
    move = last_move(entries)
    return None if move is None else entries[_promotion_number(move) - 1]


def promotion_before(entries: Sequence[Entry]) -> Entry | None:
    """The promotion whose copy was champion when the one in use was promoted."""
    current = promotion_in_use(entries)
    return None if current is None else promotion_in_use(entries[: current.number - 1])


def version_made_for(client: MlflowClient, model: str, entry: Entry) -> ModelVersion | None:
    """The version of a model that was made for a ledger entry, if it was made by now."""
    found = client.search_model_versions(f"name = '{model}' and tags.`{ENTRY_TAG}` = '{entry.number}'")
    return min(found, key=lambda version: int(version.version), default=None)


def champion_version(client: MlflowClient) -> ModelVersion | None:
    """The version that the alias points to."""
    return registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)


def require_settled(client: MlflowClient, ledger: Ledger, seen: Sequence[Entry]) -> None:
    """Refuse to move the champion where somebody else did since `seen` was read, or while ledger and alias differ.

    Raises
    ------
    HeadMovedError
        when there was another move, or one stands in the ledger that the alias has not followed, or the alias was moved by
        hand.
    """
    entries = ledger.entries()
    _refuse_second(entries, seen)
    due, now = promotion_in_use(entries), champion_version(client)
    wanted = None if due is None else version_made_for(client, registry.PRODUCTION_MODEL, due)
    if (now is None) != (due is None) or (now is not None and (wanted is None or now.version != wanted.version)):
        raise HeadMovedError(
            f"alias {registry.CHAMPION} is on {told(now)}, but by the ledger it is {in_ledger(due, wanted)}: another move is "
            f"being made, was cut off, or was made by hand. Nothing was moved; {MEND}"
        )


def point(client: MlflowClient, model: str, alias: str, version: ModelVersion) -> None:
    """Put an alias on a version.

    Where two do so for the first time at once, both insert its row, and MLflow refuses the later one, which then moves it.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(model, alias, str(version.version))
    except MlflowException:
        if registry.version_of(client, model, alias) is None:
            raise
        client.set_registered_model_alias(model, alias, str(version.version))


def may_move(client: MlflowClient) -> bool:
    """Whether a server lets this account move the champion (`require_mover`); of an embedded registry everybody may."""
    try:
        require_mover(client)
    except RefusedError:
        return False
    return True


@refusals_told(APPROVER)
def require_mover(client: MlflowClient) -> None:
    """Refuse an account that its server does not let move the champion, before anything is written of the move.

    MLflow tells by trying alone: a tag on the model takes the same right as a new version and an alias.

    Raises
    ------
    RefusedError
        when the server does not let this account.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if not mlflow.get_tracking_uri().startswith("http"):
        return
    try:
        client.set_registered_model_tag(registry.PRODUCTION_MODEL, MOVER_TAG, account())
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the model is made when a copy is
            raise


def record_move(ledger: Ledger, kind: Kind, body: dict[str, Any], seen: Sequence[Entry]) -> Entry:
    """Write a move to the ledger, unless there has been another one since `seen` was read.

    Raises
    ------
    HeadMovedError
        when somebody else moved the champion first.
    """
    return ledger.append(kind, body, unless=lambda entries: _refuse_second(entries, seen))


def settle(client: MlflowClient, ledger: Ledger) -> ModelVersion | None:
    """Let the alias follow the ledger: make the copy that the last move is about, where it is not there, and point to it.

    Returns
    -------
    The champion; None where the ledger knows none.

    Raises
    ------
    InputError
        when the candidate that was promoted is not in the registry any more.
    """
    while True:
        entries = ledger.entries()
        due = promotion_in_use(entries)
        wanted = None if due is None else settle_copy(client, due)
        now = champion_version(client)
        if wanted is None and now is not None:
            client.delete_registered_model_alias(registry.PRODUCTION_MODEL, registry.CHAMPION)
        elif wanted is not None and (now is None or now.version != wanted.version):
            point(client, registry.PRODUCTION_MODEL, registry.CHAMPION, wanted)
        if promotion_in_use(ledger.entries()) == due:  # nobody moved it on meanwhile
            return wanted


def settle_copy(client: MlflowClient, promotion: Entry) -> ModelVersion:
    """The copy that a promotion is about; made where it is not there."""
    from mlflow.exceptions import MlflowException

    found = version_made_for(client, registry.PRODUCTION_MODEL, promotion)
    if found is not None:
        return found
    candidate = promotion.body["candidate"]
    try:
        source = client.get_model_version(candidate["name"], str(candidate["version"]))
    except MlflowException as error:
        raise InputError(
            f"entry {promotion.number} of the ledger promoted {candidate['name']} version {candidate['version']}, which is not "
            "in the registry any more; bring the registry back from its backup, or roll back to another version"
        ) from error
    ensure_model(client, registry.PRODUCTION_MODEL)
    # not copy_model_version: that asks for the right to make models first, which an approver need not have
    created = client.create_model_version(
        registry.PRODUCTION_MODEL,
        source=f"models:/{candidate['name']}/{candidate['version']}",
        run_id=source.run_id,
        tags={**source.tags, **copy_tags(promotion)},
        description=source.description,
        model_id=source.model_id,
    )
    return the_one_that_counts(client, created, promotion)


def the_one_that_counts(client: MlflowClient, created: ModelVersion, entry: Entry) -> ModelVersion:
    """The version that was made for an entry first; where another process was, the one made just now is taken away again.

    Raises
    ------
    RefusedError
        when a server does not let this account take it away.
    """
    from mlflow.exceptions import MlflowException

    found = version_made_for(client, created.name, entry)
    assert found is not None
    if found.version == created.version:
        return found
    try:
        client.delete_model_version(created.name, str(created.version))
    except MlflowException as error:
        if refusal(error) is None:
            raise
        raise RefusedError(
            f"{created.name} version {found.version} was made by another process at the same moment, and counts. Version "
            f"{created.version} is one too many, and the account {account()!r} may not delete it: let {ADMINISTRATOR} do that, "
            "then start the same again"
        ) from error
    return found


def copy_tags(promotion: Entry) -> dict[str, str]:
    """The tags that a copy has beyond its candidate's."""
    candidate = promotion.body["candidate"]
    tags = {
        "key": candidate["key"],
        "mlflow_run_id": candidate["mlflow_run_id"],
        "policy.digest": promotion.body["policy"],
        "copied_from": f"{candidate['name']}/{candidate['version']}",
        "waived": ", ".join(promotion.body["waived"]) or "none",
        "decision": "promoted",
        "ledger_entry": str(promotion.number),
    }
    return {registry.TAG + name: value for name, value in tags.items()}


def told(version: Version | None) -> str:
    """A version in a message."""
    return "no version" if version is None else f"{version.name} version {version.version}"


def in_ledger(promotion: Entry | None, made: Version | None) -> str:
    """A promotion's copy in a message; `made` is the version, where it was made by now."""
    if promotion is None:
        return "on no version"
    candidate = promotion.body["candidate"]
    of = f"of {candidate['name']} version {candidate['version']} (entry {promotion.number})"
    return f"on the copy {of}, which was not made yet" if made is None else f"on version {made.version}, the copy {of}"


def _promotion_number(move: Entry) -> int:
    return move.number if move.kind == "promotion" else int(move.body["to"]["entry"])


def _refuse_second(entries: Sequence[Entry], seen: Sequence[Entry]) -> None:
    before, move = last_move(seen), last_move(entries)
    if move is not None and move != before:
        raise HeadMovedError(
            f"{move.actor} moved the champion first ({move.kind}, entry {move.number} of the ledger, {move.at}). Nothing was "
            "moved; look at what is champion now and start again"
        )
