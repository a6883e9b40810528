"""C2PA: signed manifests of origin, what they claim and whether that holds.

What is claimed is read by its structure (`masksim.provenance.jumbf`); it is checked where the
package ``c2pa-python`` is installed, without fetching anything.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from masksim.provenance import generators, jumbf
from masksim.provenance.untrusted_text import MOST, clean

__all__ = ["UNBROKEN", "C2pa", "Ingredient", "State", "read_c2pa"]

State: TypeAlias = Literal[
    "absent", "elsewhere", "not verified", "trusted", "valid", "untrusted", "tampered", "invalid",
    "unreadable",
]  # fmt: skip
UNBROKEN = ("trusted", "valid", "untrusted")
"""States of a manifest that fits its image."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """An image that went into this one, by what a manifest says of it.

    Attributes
    ----------
    relationship
        ``"parentOf"``: this image was made from it; ``"componentOf"``: it is a part;
        ``"inputTo"``: it was shown to a generator.
    source_types
        What its own manifest says; see `SOURCE_TYPES`.
    maker
        The generator that its manifest names.
    """

    relationship: str
    source_types: tuple[str, ...] = ()
    maker: str | None = None


@dataclass(frozen=True, slots=True)
class C2pa:
    """A manifest of the Coalition for Content Provenance and Authenticity.

    Attributes
    ----------
    state
        ``"absent"``: the file has none. ``"elsewhere"``: it names one that stands elsewhere, which
        was not asked. ``"not verified"``: it has one, whose claims were read and not checked, for
        the package ``c2pa-python`` is missing. ``"trusted"``: unbroken, signed by someone on a
        list of trust. ``"valid"``: unbroken, no list of trust was asked. ``"untrusted"``: unbroken,
        but the signer is on no list of trust, or the certificate not fit. ``"tampered"``: image or
        manifest were changed after signing. ``"invalid"``: broken otherwise. ``"unreadable"``: the
        package could not read it.
    claim_generator
        The program that wrote it.
    actions
        What it says was done to this image, one text an action.
    source_types
        IPTC's terms among these (see `SOURCE_TYPES`): of this image, not of what went into it.
    signer, signed
        Who signed it, and when; as the manifest has it.
    problems
        Codes of what did not hold, as the specification names them.
    maker
        The generator that it names as the maker of this image.
    ingredients
        What went into the image and has a manifest of its own.
    others
        Codes of what could not be checked and bears on a part of it only: identities,
        ingredients, what stands elsewhere.
    location
        Where a manifest stands that is not in the file.
    """

    state: State = "absent"
    claim_generator: str | None = None
    actions: tuple[str, ...] = ()
    source_types: tuple[str, ...] = ()
    signer: str | None = None
    signed: str | None = None
    problems: tuple[str, ...] = ()
    maker: str | None = None
    ingredients: tuple[Ingredient, ...] = ()
    others: tuple[str, ...] = ()
    location: str | None = None


_ASIDE = re.compile(
    r"cawg\.|ingredient\.|.*(?:inaccessible|unavailable)$|.*\.ocsp\.(?:skipped|inaccessible)$"
)


def read_c2pa(data: bytes, provenance: Sequence[str]) -> C2pa:
    """Read the manifest of a file.

    Parameters
    ----------
    data
        The bytes of the file.
    provenance
        Values of ``dcterms:provenance`` in its XMP: where a manifest stands that is not in it.

    Returns
    -------
    C2pa
        Never an error, for any bytes.
    """
    store = jumbf.find_store(data)
    if store is None:
        there = next((p for p in provenance if re.match(r"https?://\S+$", p.strip())), None)
        return C2pa("elsewhere", location=clean(there)) if there else C2pa()
    try:
        return _checked(data)
    except ImportError:
        state: State = "not verified"
        problems: tuple[str, ...] = ()
    except Exception as error:  # as `noted`
        state, problems = "unreadable", (clean(f"{type(error).__name__}: {error}"),)
    try:
        return _from_store(jumbf.read_store(store), state, problems)
    except Exception:  # as `noted`
        return C2pa(state, problems=problems)


def _checked(data: bytes) -> C2pa:
    import c2pa

    # Nothing may be fetched: neither manifests that stand elsewhere nor revoked certificates.
    settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    with (
        c2pa.Settings.from_dict(settings) as chosen,
        c2pa.Context(chosen) as context,
        c2pa.Reader(None, io.BytesIO(data), context=context) as reader,
    ):
        return _from_store(json.loads(reader.json()))


def _from_store(
    store: Mapping[str, Any], state: State | None = None, problems: tuple[str, ...] = ()
) -> C2pa:
    """Interpret a store, of `jumbf.read_store` or of the reader of ``c2pa-python``.

    Parameters
    ----------
    store
        See `jumbf.read_store`.
    state, problems
        Where nothing was checked.
    """
    manifests = store["manifests"]
    manifest = manifests[store["active_manifest"]]
    others: tuple[str, ...] = ()
    if state is None:
        own, others = _codes(store)
        problems = tuple(code for code in own if not _ASIDE.match(code))
        others = (*(code for code in own if _ASIDE.match(code)), *others)
        state = _state(str(store.get("validation_state", "")), (*problems, *others))
    actions = [_action(action) for action in _actions(manifest)]
    signature = manifest.get("signature_info") or {}
    program = _program(manifest)
    return C2pa(
        state,
        clean(program) if program else None,
        tuple(actions[:MOST]),
        _types(manifest),
        clean(signature["issuer"]) if signature.get("issuer") else None,
        clean(signature["time"]) if signature.get("time") else None,
        tuple(dict.fromkeys(map(clean, problems)))[:MOST],
        _maker(manifest),
        tuple(_ingredients(manifest, manifests))[:MOST],
        tuple(dict.fromkeys(map(clean, others)))[:MOST],
    )


def _codes(store: Mapping[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """Codes of what did not hold: of the active manifest, and of the others in its store."""
    every = [
        (str(status.get("code", "")), str(status.get("url") or ""))
        for status in store.get("validation_status") or ()
    ]
    results = store.get("validation_results") or {}
    active = results.get("activeManifest")
    if isinstance(active, Mapping):
        own = [str(status.get("code", "")) for status in active.get("failure") or ()]
        for delta in results.get("ingredientDeltas") or ():
            failed = (delta.get("validationDeltas") or {}).get("failure") or ()
            every += [(str(status.get("code", "")), "elsewhere") for status in failed]
    else:
        label = str(store["active_manifest"])
        own = [code for code, url in every if not url or label in url]
    return own, tuple(code for code, _ in every if code not in own)


def _state(state: str, codes: Sequence[str]) -> State:
    """Tell a changed image from a signer that is merely unknown.

    What fails in an identity or an ingredient, or cannot be reached, does not break the manifest.
    """
    own = [code for code in codes if not _ASIDE.match(code)]
    broken = [code for code in own if not code.startswith(("signingCredential.", "timeStamp."))]
    if any(code.endswith((".mismatch", ".missing")) for code in broken):
        return "tampered"
    if state == "Trusted" and not broken:
        return "trusted"
    if broken or state not in ("Trusted", "Valid", "Invalid"):
        return "invalid"
    signer = any(code.startswith("signingCredential.") for code in own)
    return "untrusted" if signer or (state == "Invalid" and len(own) == len(codes)) else "valid"


def _program(manifest: Mapping[str, Any]) -> str | None:
    infos = manifest.get("claim_generator_info") or ()
    names = [
        f"{info.get('name', '')} {info.get('version', '')}".strip()
        for info in infos
        if isinstance(info, Mapping)
    ]
    return ", ".join(dict.fromkeys(filter(None, names))) or manifest.get("claim_generator")


def _data(manifest: Mapping[str, Any], *beginnings: str) -> Iterator[Mapping[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        data = assertion.get("data")
        if str(assertion.get("label", "")).startswith(beginnings) and isinstance(data, Mapping):
            yield data


def _actions(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for assertion in manifest.get("assertions") or ():
        if str(assertion.get("label", "")).startswith(("c2pa.actions", "actions")):
            data = assertion.get("data")
            # Early manifests of Bing hold the list itself.
            listed = data.get("actions") if isinstance(data, Mapping) else data
            for action in listed if isinstance(listed, list) else ():
                if isinstance(action, Mapping):
                    yield action


def _agent(action: Mapping[str, Any]) -> str:
    agent = action.get("softwareAgent")
    if isinstance(agent, Mapping):
        agent = f"{agent.get('name') or ''} {agent.get('version') or ''}".strip()
    return str(agent) if agent else ""


def _action(action: Mapping[str, Any]) -> str:
    parts = [str(action.get("action", "")).removeprefix("c2pa.")]
    if agent := _agent(action):
        parts.append(f"by {agent}")
    if when := action.get("when"):
        parts.append(f"at {when}")
    if description := action.get("description"):
        parts.append(f"({description})")
    return clean(" ".join(parts))


def _stated(value: Any, depth: int = 0) -> Iterator[str]:
    """Source types anywhere in an action or a description, whatever their prefix."""
    if isinstance(value, Mapping) and depth < 8:
        for key, inner in value.items():
            name = re.split(r"[.:/]", str(key))[-1].lower()
            if name == "digitalsourcetype":
                values = inner if isinstance(inner, list) else [inner]
                for one in values:
                    one = one.get("@id", one.get("@value")) if isinstance(one, Mapping) else one
                    if isinstance(one, str):
                        yield clean(generators.term_of(one))
            elif name not in ("ingredient", "ingredients"):
                yield from _stated(inner, depth + 1)
    elif isinstance(value, list) and depth < 8:
        for inner in value[:1000]:
            yield from _stated(inner, depth + 1)


def _types(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Source types that a manifest states of its own image."""
    said = [term for action in _actions(manifest) for term in _stated(action)]
    for data in _data(manifest, "stds.iptc", "c2pa.metadata", "cawg.metadata"):
        said += _stated(data)
    return tuple(dict.fromkeys(said))[:MOST]


def _maker(manifest: Mapping[str, Any]) -> str | None:
    """Find the generator that a manifest names as the maker of its image."""
    told: list[str] = []
    made = False
    for action in _actions(manifest):
        synthetic = any(generators.points_of(t) == "generator" for t in _stated(action))
        made = made or synthetic
        if synthetic or action.get("action") == "c2pa.created":
            told += [_agent(action), str(action.get("description") or "")]
    models = [
        f"{data.get('description') or ''} {data.get('version') or ''}".strip()
        for data in _data(manifest, "com.adobe.generative-ai")
    ]
    told += [*models, _program(manifest) or ""]
    if made:
        signature = manifest.get("signature_info") or {}
        told += [str(signature.get("issuer") or ""), str(signature.get("common_name") or "")]
    for text in told:
        if text and (named := generators.by_program(text)) and named.name:
            return named.name
    return clean(models[0]) if models and models[0] else None


def _ingredients(manifest: Mapping[str, Any], manifests: Mapping[str, Any]) -> Iterator[Ingredient]:
    for ingredient in manifest.get("ingredients") or ():
        inner = manifests.get(ingredient.get("active_manifest"))
        if not isinstance(inner, Mapping):
            continue
        types, maker, seen = list(_types(inner)), _maker(inner), 0
        # What it was made from itself, and that from.
        while not types and seen < MOST:
            seen += 1
            parents = [
                manifests.get(i.get("active_manifest"))
                for i in inner.get("ingredients") or ()
                if i.get("relationship") == "parentOf"
            ]
            found = next((p for p in parents if isinstance(p, Mapping)), None)
            if found is None:
                break
            inner = found
            types, maker = list(_types(inner)), maker or _maker(inner)
        yield Ingredient(clean(ingredient.get("relationship") or ""), tuple(types[:MOST]), maker)
