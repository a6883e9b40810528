"""Names of generators and scanners in texts, and IPTC's terms for how an image came to be.

A generator's name counts where a program writes its own name, and there as a whole word. Names
that are ordinary words (Firefly, Gemini, Imagen, Designer) count with their maker, or where they
are all that the program says. In free text a name says nothing of who made the picture ("Gemini
North telescope"): there only the forms count that generators' programs write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = [
    "SOURCE_TYPES",
    "Named",
    "begins_from_image",
    "by_credit",
    "by_program",
    "by_record",
    "by_text_key",
    "contradicts",
    "is_scanner",
    "model_of",
    "names",
    "of_label",
    "points_of",
    "term_of",
]


_LOOKED_AT = 1 << 16  # letters of a text


@dataclass(frozen=True, slots=True)
class Named:
    """A generator, and the place of the text that names it.

    Attributes
    ----------
    name
        As its maker writes it; None where the form is a generator's, but not whose.
    words
        What matched.
    start, end
        Where in the text.
    """

    name: str | None
    words: str
    start: int = 0
    end: int = 0


# Name; what names it within a program's own field; what does if it is all that stands there;
# beginnings of the names that detectors know its images by (none: it runs any model).
_PRODUCTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("Microsoft Designer", r"(?:microsoft|image creator from)[ _]designer", "", ("dalle", "gpt")),
    ("Bing Image Creator", r"bing image creator|image creator from \w+", "", ("dalle", "gpt")),
    ("DALL·E", r"dall[-·.• ]e(?:[ -]?[23])?|dalle[ -]?[23]", "dalle", ("dalle",)),
    ("GPT Image", r"gpt[- ]?image(?:[ -]?\d[\w.]*)?|gpt-4o", "", ("gpt",)),
    ("ChatGPT", r"chat ?gpt", "", ("gpt", "dalle")),
    ("Sora", r"openai sora", r"sora", ("gpt",)),
    ("OpenAI", r"openai", "", ("gpt", "dalle")),
    ("Midjourney", r"mid-?journey", "", ("midjourney",)),
    ("Adobe Firefly", r"adobe[ _]firefly", r"firefly", ("firefly",)),
    ("FLUX", r"flux[.-]?[12](?:[.-]\w+)*|flux [12] (?:dev|pro|schnell|kontext|klein)"
     r"|black forest labs", "", ("flux",)),
    ("Stable Diffusion XL", r"stable[- ]?diffusion[- ]xl|sdxl", "", ("sdxl", "sd")),
    ("Stable Diffusion", r"stable[- ]?diffusion", "", ("sd",)),
    ("Stability AI", r"stability[. ]ai|stability_contentcredentials\w*|dream ?studio"
     r"|stable[- ]image[-\w]*", "", ("sd", "stability")),
    ("NovelAI", r"novel ?ai", "", ("novelai", "sd")),
    ("ComfyUI", r"comfy ?ui", "", ()),
    ("InvokeAI", r"invoke ?ai", "", ()),
    ("Automatic1111", r"automatic1111|stable-diffusion-webui|sd[- ]?webui", "", ()),
    ("Fooocus", r"fooocus", "", ()),
    ("SwarmUI", r"swarm ?ui", "", ()),
    ("Draw Things", "", r"draw things", ()),
    ("mflux", r"mflux", "", ("flux",)),
    ("DiffusionBee", r"diffusion ?bee", "", ("sd",)),
    ("Easy Diffusion", r"easy diffusion", "", ("sd",)),
    ("Civitai", r"civitai", "", ()),
    ("Pollinations", r"pollinations(?:\.ai)?", "", ()),
    ("Ideogram", r"ideogram\.ai|ideogram ai|ideogram \d[\w.]*", r"ideogram", ("ideogram",)),
    ("Leonardo.Ai", r"leonardo[. ]ai|leonardo_image", "", ("leonardo",)),
    ("Recraft", r"recraft\.ai|recraft ai|recraft v?\d[\w.]*", r"recraft", ("recraft",)),
    ("Krea", r"krea\.ai|krea ai|flux[. -]1[ -]krea", r"krea", ()),
    ("Google Imagen", r"google imagen|imagen (?:model )?[234](?:\.\d)?", "", ("imagen",)),
    ("Google Gemini", r"google gemini|gemini \d[\w.]* \w+(?: image)?|gemini image", "",
     ("gemini", "imagen")),
    ("Nano Banana", r"nano[- ]?banana", "", ("gemini",)),
    ("Google AI", r"google ai|google generative ai|imagefx", "", ("imagen", "gemini")),
    ("Grok", r"xai grok|grok[- ](?:imagine|image)|grok-?\d[\w.-]*", r"grok|aurora", ("grok",)),
    ("Seedream", r"seedream|jimeng|doubao", "", ("seedream",)),
    ("Meta AI", r"meta ai|imagined with ai", "", ("meta",)),
    ("Qwen-Image", r"qwen[- ]?image|tongyi wanxiang|wanx\d?", "", ("qwen",)),
    ("Z-Image", r"z-image(?:-\w+)?", "", ("z-image",)),
    ("Hunyuan", r"hunyuan(?: ?image|-?dit)?", "", ("hunyuan",)),
    ("HiDream", r"hidream", "", ("hidream",)),
    ("Kling", r"kling ai|klingai", r"kling", ("kling",)),
    ("Runway", r"runway ?ml|runway ai|runway gen-?\d", r"runway", ("runway",)),
    ("Luma", r"luma (?:ai|photon|dream machine)", "", ("luma",)),
    ("Pika", r"pika labs", "", ("pika",)),
    ("Amazon Titan", r"amazon (?:titan|nova)|titan image generator", "", ("titan", "nova")),
    ("Freepik AI", r"freepik (?:ai|mystic|pikaso)", "", ()),
    ("Magnific", r"magnific(?: ai|\.ai)", r"magnific", ()),
    ("Playground", r"playground ai|playground v\d", "", ("playground",)),
    ("NightCafe", r"night ?cafe(?: studio|\.studio| creator)", r"night ?cafe", ()),
    ("Craiyon", r"craiyon", "", ("craiyon",)),
    ("Artbreeder", r"artbreeder", "", ()),
    ("Canva Magic Media", r"(?:canva )?magic media", "", ()),
    ("Getty Generative AI", r"generative ai by getty", "", ()),
    ("StyleGAN", r"stylegan\w*|this ?person ?does ?not ?exist", "", ("stylegan",)),
)  # fmt: skip
# The separators are in none of the parts, so that a text can be matched in one way only.
_VERSION = r"(?:[ /_-]+(?:(?:v|version |gen-?)?\d[a-z0-9.+]*|turbo|pro|alpha|beta|web|app|image))*"
_LONGEST_NAME = 80


def _word(pattern: str) -> str:
    # Not within a longer word: "Imagenation", "Redesigner". A version may stand behind it.
    return rf"(?<![^\W_])(?:{pattern})(?![^\W\d_])"


_WITHIN = re.compile(
    "|".join(f"(?P<p{k}>{_word(p)})" for k, (_, p, _, _) in enumerate(_PRODUCTS) if p),
    re.IGNORECASE,
)
_ALONE = re.compile(
    "|".join(f"(?P<a{k}>(?:{a}){_VERSION})" for k, (_, _, a, _) in enumerate(_PRODUCTS) if a),
    re.IGNORECASE,
)
_MADE_WITH = re.compile(
    r"[\s\"']*(?:this )?(?:image |picture )?(?:was )?"
    r"(?:(?:ai[- ])?(?:made|created|generated|imagined) (?:with|by|using|in|on)"
    r"|ai[- ]generated(?: (?:with|by|using|image|picture|content))*)(?P<rest>.{0,80})",
    re.IGNORECASE | re.DOTALL,
)
_AI_ONLY = re.compile(r"(?:an? )?(?:ai|artificial intelligence|generative ai)", re.IGNORECASE)


def by_program(text: str) -> Named | None:
    """Look for a generator in a field where a program writes its own name.

    Parameters
    ----------
    text
        EXIF Software, XMP CreatorTool, an agent of a C2PA manifest and the like.

    Returns
    -------
    Named or None
        One that is named as a whole word; ordinary words only with their maker, or where
        nothing but a version stands beside them.
    """
    text = text[:_LOOKED_AT]
    if match := _ALONE.fullmatch(text[: 2 * _LONGEST_NAME].strip()[:_LONGEST_NAME]):
        at = text.index(match[0])
        return Named(_product(match), match[0], at, at + len(match[0]))
    # A product says more than its maker, who stands further down in the list.
    found = min(_WITHIN.finditer(text), key=_rank, default=None)
    if found is not None:
        return Named(_product(found), found[0], found.start(), found.end())
    return by_record(text)


def by_credit(text: str) -> Named | None:
    """Look for a generator in a field where people name whom to thank: Credit, Artist.

    Parameters
    ----------
    text
        What stands there.

    Returns
    -------
    Named or None
        Where the whole is a generator's name, or `by_record` finds one.
    """
    text = text[:_LOOKED_AT].strip()
    if match := _WITHIN.fullmatch(text):
        return Named(_product(match), match[0], 0, len(text))
    return by_record(text)


def _rank(match: re.Match[str]) -> int:
    return int(str(match.lastgroup)[1:])


def _product(match: re.Match[str]) -> str:
    return _PRODUCTS[_rank(match)][0]


# ------------------------------------------------------------------------------- forms of records

_STEPS = re.compile(r"\bSteps: ?\d+, ?(?:Sampler|Schedule type|CFG scale|Seed|Size|Model)\b")
_STEPS_APART = re.compile(r"\bSteps: ?\d+\s*(?:,|\n|$)")
_BESIDE_STEPS = re.compile(
    r"\b(?:Sampler: ?\S|CFG scale: ?\d|Seed: ?\d|Guidance: ?\d|Negative prompt:)"
)
_JOB = re.compile(r"\bJob ID: ?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_JOB_SHORT = re.compile(r"\bJob ID: ?[0-9a-f]{4,}")
_JOB_OPTION = re.compile(r"(?:^|\s)--(?:v|niji|ar|q|s|style|stylize|chaos|seed) \S")
_NODES = re.compile(r"\s*(?:prompt|workflow)\s*:\s*[\[{]", re.IGNORECASE)
_PROMPT = re.compile(r"\s*prompt\s*:\s*\S", re.IGNORECASE)
_XAI = re.compile(r"Signature: ?[A-Za-z0-9+/=]{60,}")
_OPENAI = re.compile(r"OpenAI--ImageGeneration--\S+")
_DREAM = re.compile(r"\"[^\"]+\" -[a-zA-Z] ?\S")

# Keys of JSON records: with a prompt among them it is a generator's; the rest show whose.
_TELLING = (
    "prompt", "negative[_ ]?prompt", "positive[_ ]?prompt", "originalPrompt", "negative", "uc",
    "seed", "steps", "sampler(?:_name)?", "cfg_?scale", "guidance(?:[_ ]?scale)?", "scheduler",
    "model", "base[_ ]?model", "denoising_strength", "loras", "num_inference_steps",
)  # fmt: skip
_KEY = re.compile(rf'"({"|".join(_TELLING)})"\s*:', re.IGNORECASE)
_OWN_KEYS = (
    (re.compile(r'"class_type"\s*:'), "ComfyUI"),
    (re.compile(r'"nodes"\s*:\s*\[\s*\]'), "ComfyUI"),
    (re.compile(r'"sui_image_params"\s*:'), "SwarmUI"),
    (re.compile(r'"mflux_version"\s*:'), "mflux"),
    (re.compile(r'"invokeai\w*"\s*:|"app_version"\s*:\s*"invokeai', re.IGNORECASE), "InvokeAI"),
)  # fmt: skip


def by_record(text: str) -> Named | None:
    """Look for the form of a generator's record, in any text.

    Parameters
    ----------
    text
        A description, a comment, a prompt: whoever may have written it.

    Returns
    -------
    Named or None
        For the settings that Stable Diffusion's programs write (``Steps: 20, Sampler: ...``), a
        job of Midjourney's, ComfyUI's nodes, a prompt with its settings as JSON, and "made with"
        followed by a generator's name.
    """
    text = text[:_LOOKED_AT]
    if text.lstrip().startswith(("{", "[")):
        return _by_json(text)
    if match := _STEPS.search(text):
        return Named(_of_settings(text), match[0], match.start(), match.end())
    if match := _JOB.search(text) or _JOB_SHORT.search(text):
        options = text[max(match.start() - 4000, 0) : match.start()]
        if match.re is _JOB or _JOB_OPTION.search(options):
            return Named("Midjourney", match[0], match.start(), match.end())
    if match := _NODES.match(text):
        return Named("ComfyUI", match[0], match.start(), match.end())
    if match := _OPENAI.search(text):
        return Named("OpenAI", match[0], match.start(), match.end())
    if (match := _STEPS_APART.search(text)) and _BESIDE_STEPS.search(text):
        return Named(_of_settings(text), match[0], match.start(), match.end())
    if match := _PROMPT.match(text):
        return Named(None, match[0][:-1].strip(), match.start(), match.end())
    if (match := _XAI.match(text)) and len(text) < 1000:
        return Named("Grok", match[0][:20], 0, 20)
    if match := _MADE_WITH.fullmatch(text.strip()):
        rest = match["rest"].strip(" .!:,;\"'")
        if named := _WITHIN.match(rest) or _ALONE.fullmatch(rest):
            return Named(_product(named), match[0].strip(), 0, len(text))
        if _AI_ONLY.fullmatch(rest) or (not rest and "ai" in match[0].lower()[:12]):
            return Named(None, match[0].strip(), 0, len(text))
    return None


def _of_settings(text: str) -> str:
    if match := re.search(r"\bVersion: ?(ComfyUI|Fooocus|InvokeAI)", text):
        return match[1]
    if "Fooocus" in text[-2000:]:
        return "Fooocus"
    return "Stable Diffusion"


_GRAPH = re.compile(r'"nodes"\s*:\s*\[')
_NODE = re.compile(r'"(?:links|widgets_values|type)"\s*:')


def _by_json(text: str) -> Named | None:
    # One after the other: a pattern of both would look for the second behind each of the first.
    if (graph := _GRAPH.search(text)) and _NODE.search(text, graph.end(), graph.end() + 20_000):
        return Named("ComfyUI", graph[0], graph.start(), graph.end())
    for pattern, name in _OWN_KEYS:
        if match := pattern.search(text):
            return Named(name, match[0][:60], match.start(), match.end())
    keys = {match[1]: match for match in _KEY.finditer(text)}
    if any("prompt" in key.lower() for key in keys):
        first = next(iter(keys.values()))
        program = "Fooocus" if "Fooocus" in text else None
        return Named(program, ", ".join(list(keys)[:4]), first.start(), first.end())
    return None


# Where records name the model that was run: ComfyUI's loaders first, then others' settings.
_MODELS = (
    re.compile(r'"(?:ckpt_name|unet_name|base[_ ]model)"\s*:\s*"([^"\n]{2,120})"', re.IGNORECASE),
    re.compile(r"\bModel: ?([^,\n]{2,120})"),
    re.compile(r'"(?:model_name|model)"\s*:\s*"([^"\n]{2,120})"', re.IGNORECASE),
)
_NO_MODEL = re.compile(
    r"upscal|esrgan|\b[248]x[-_]|clip|vae|yolo|rmbg|lora|sam_|isnet|depth", re.IGNORECASE
)


def model_of(text: str) -> str | None:
    """Find the model that a generator's record names.

    Parameters
    ----------
    text
        A record that `by_record` has found.

    Returns
    -------
    str or None
        Such as ``"flux1-dev.safetensors"``; the first that is no upscaler or other tool.
    """
    for pattern in _MODELS:
        for match in pattern.finditer(text[:_LOOKED_AT]):
            model = match[1].strip().replace("\\\\", "/")
            if not _NO_MODEL.search(model):
                return model
    return None


_LOADS = re.compile(r'"(?:class_type|type)"\s*:\s*"(?:LoadImage|VAEEncode|ImageEdit)')


def begins_from_image(text: str) -> bool:
    """Tell whether a record of ComfyUI's loads a picture, which it may have changed only."""
    return bool(_LOADS.search(text[:_LOOKED_AT]))


# Keys of PNG text that only generators' programs use.
_OWN_TEXT = {
    "sd-metadata": "InvokeAI", "invokeai_metadata": "InvokeAI", "invokeai_graph": "InvokeAI",
    "invokeai_workflow": "InvokeAI", "invokeai": "InvokeAI", "dream": "InvokeAI",
    "fooocus_scheme": "Fooocus", "sui_image_params": "SwarmUI",
    "use_stable_diffusion_model": "Easy Diffusion", "generation_data": None,
    "negative_prompt": None, "negativeprompt": None, "civitai_metadata": "Civitai",
    "stable_diffusion_version": "Stable Diffusion",
}  # fmt: skip


def by_text_key(key: str, value: str) -> Named | None:
    """Look for a generator in a text of a PNG, by its key and value.

    Parameters
    ----------
    key, value
        Of a text chunk.

    Returns
    -------
    Named or None
        For keys that are generators' own, for those that others use as well (``parameters``,
        ``prompt``, ``workflow``) with a value of a generator's form, and for what `by_program` or
        `by_record` find.
    """
    low = key.strip().lower()
    value = value[:_LOOKED_AT]
    if low in _OWN_TEXT:
        if low == "dream" and not _DREAM.match(value):
            return None
        return Named(_OWN_TEXT[low], key.strip())
    if low in ("software", "source", "generator", "creator tool", "creatortool", "program"):
        return by_program(value)
    found = by_record(value)
    if found is not None:
        return found
    is_json = value.lstrip().startswith("{")
    if low == "prompt" and value.strip():
        return Named("ComfyUI" if is_json else None, key.strip())
    if low == "workflow" and is_json:
        return Named("ComfyUI", key.strip())
    if low == "parameters" and _STEPS_APART.search(value):
        return Named("Stable Diffusion", key.strip())
    if low == "title" and re.fullmatch(r"(.+) generated image", value.strip()):
        return by_program(value)
    return None


def of_label(value: str) -> str | None:
    """Read China's label for generated content (TC260: ``AIGC``).

    Parameters
    ----------
    value
        JSON, or XML's text with it.

    Returns
    -------
    str or None
        What it says in words; None where it is no such label.
    """
    text = value[:_LOOKED_AT].replace("&quot;", '"').strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    values = {str(k).lower(): v for k, v in found.items()}
    if isinstance(values.get("aigc"), dict):
        values = {str(k).lower(): v for k, v in values["aigc"].items()}
    said = {"1": "is generated", "2": "may be generated", "3": "is suspected to be generated"}
    label = said.get(str(values.get("label")))
    if label is None:
        return None
    maker = str(values.get("contentproducer") or "").strip()
    return f"{label}, its maker {maker}" if maker else label


def contradicts(name: str, detector_name: str) -> bool:
    """Tell whether an image by this generator cannot be one of those a detector found.

    Parameters
    ----------
    name
        As `Named.name`.
    detector_name
        A generator, as a detector calls it.

    Returns
    -------
    bool
        False where it may be, or nobody knows: programs such as ComfyUI run any model.
    """
    for known, _, _, beginnings in _PRODUCTS:
        if known == name:
            low = detector_name.lower()
            return bool(beginnings) and not low.startswith(beginnings)
    return False


# ------------------------------------------------------------------------------- devices

_SCANNER = re.compile(
    r"\b(?:perfection\w*|scan\w*|\w*scanner|canoscan\w*|scan ?jet\w*|coolscan\w*|scansnap\w*|"
    r"opticfilm\w*|\w*scan|gt-x\d+|microtek|noritsu|"
    r"qss-\d+\w*|sp-[23]000|reflecta|plustek|flextight|opticbook\w*|"
    r"lide ?\d*|expression ?1\d{3,4}\w*|"
    r"officejet\w*|laserjet\w*|deskjet\w*|workforce|mfc-\w+|dcp-\w+|\w*mfp\w*|envy \d+|"
    r"photosmart .*series|\w+ series (?:printer|all-in-one)|(?:mg|mx|ts|tr|mp|pixma)\w* series)\b",
    re.IGNORECASE,
)
_SCAN_SOFTWARE = re.compile(
    r"\b(?:vuescan|silverfast|epson ?scan\w*|hp ?scan\w*|scangear|ij scan\w*|canoscan\w*|"
    r"naps2|x?sane|simple scan|paperport|scansnap\w*|document scan\w*|nikon scan|"
    r"mp navigator\w*)\b",
    re.IGNORECASE,
)


def is_scanner(device: str, software: str | None) -> bool:
    """Tell a scanner from a camera by its name, or by the program that ran it."""
    return bool(_SCANNER.search(device) or (software and _SCAN_SOFTWARE.search(software)))


# ------------------------------------------------------------------------------- IPTC's terms

SOURCE_TYPES: Mapping[str, str] = {
    "trainedAlgorithmicMedia": "made by a generator (trained algorithmic media)",
    "compositeWithTrainedAlgorithmicMedia": "partly made by a generator",
    "compositeSynthetic": "a composite with synthetic parts",
    "trainedAlgorithmicData": "data made by a trained algorithm",
    "algorithmicallyEnhanced": "enhanced by an algorithm",
    "algorithmicMedia": "made by an algorithm without training data",
    "dataDrivenMedia": "made from data by a program",
    "softwareImage": "made by a program",
    "digitalArt": "made by hand on a computer",
    "digitalCreation": "made on a computer",
    "virtualRecording": "recorded in a virtual world",
    "screenCapture": "a capture of a screen",
    "composite": "a composite of several images",
    "compositeCapture": "a composite of captures",
    "humanEdits": "edited by a person",
    "minorHumanEdits": "slightly edited by a person",
    "digitalCapture": "captured by a digital camera",
    "computationalCapture": "captured and computed by a camera",
    "multiFrameComputationalCapture": "computed by a camera from several captures",
    "negativeFilm": "a scan of a negative",
    "positiveFilm": "a scan of a slide",
    "print": "a scan of a print",
    "empty": "begun from an empty page",
}
"""Terms of IPTC and C2PA for `DigitalSourceType`, in words."""

_CANONICAL = {term.lower(): term for term in SOURCE_TYPES}
PARTLY = frozenset({"compositeWithTrainedAlgorithmicMedia", "compositeSynthetic"})
_SYNTHETIC = PARTLY | {"trainedAlgorithmicMedia", "trainedAlgorithmicData", "algorithmicMedia"}
_CAPTURED = frozenset(
    {"digitalCapture", "computationalCapture", "multiFrameComputationalCapture"}
    | {"negativeFilm", "positiveFilm"}
)


def term_of(value: str) -> str:
    """Cut a term of `SOURCE_TYPES` out of what a file holds.

    Parameters
    ----------
    value
        A term, with or without its vocabulary's address, prefix, query or fragment, in any case.

    Returns
    -------
    str
        As `SOURCE_TYPES` writes it, or what is left where it knows none.
    """
    parts = [part for part in re.split(r"[/#?:\s]+", value.strip()) if part]
    known = (_CANONICAL[part.lower()] for part in reversed(parts) if part.lower() in _CANONICAL)
    bare = value.strip().rstrip("/#?").rpartition("/")[2]
    return next(known, bare)


def points_of(term: str) -> str:
    """Tell what a term points to: ``"generator"``, ``"camera"`` or ``"other"``."""
    if term in _SYNTHETIC:
        return "generator"
    return "camera" if term in _CAPTURED else "other"


def names() -> Iterator[str]:
    """Every generator that is known by name."""
    return (name for name, _, _, _ in _PRODUCTS)
