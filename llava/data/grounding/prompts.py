"""How the tasks are asked, in several wordings; `{event}`, `{box}`, `{span}` and `{start}` are filled in."""

from __future__ import annotations

from collections.abc import Mapping

LANGUAGES = {"it": "Italian", "en": "English"}
"""The languages of `PROMPTS`, by their names."""

PROMPTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "it": {
        "REC": (
            'Dove si trova "{event}" nell\'immagine?',
            'Quale parte dell\'immagine mostra "{event}"?',
            'Indica il riquadro di "{event}".',
            'In che punto dell\'immagine si vede "{event}"?',
        ),
        "REG": (
            "Che cosa si trova in {box}?",
            "Descrivi ciò che si vede in {box}.",
            "Che cosa mostra il riquadro {box}?",
        ),
        "TVG": (
            'Quando succede "{event}" nel video?',
            'In quale intervallo del video si vede "{event}"?',
            'Indica l\'inizio e la fine di "{event}".',
        ),
        "TR": (
            "Che cosa succede in {span}?",
            "Descrivi ciò che si vede nell'intervallo {span}.",
            "Che cosa mostra il video in {span}?",
        ),
        "STVG": (
            'Quando e dove si vede "{event}"? Indica l\'intervallo e poi un riquadro per ogni istante.',
            'Indica quando succede "{event}" e dove si trova in ogni istante.',
            'In quale intervallo si vede "{event}", e in quali riquadri?',
        ),
        "SVG": (
            'Dove si trova "{event}" in {span}? Indica un riquadro per ogni istante.',
            'Nell\'intervallo {span}, indica dove si vede "{event}" in ogni istante.',
            'In quali riquadri si vede "{event}" durante {span}?',
        ),
        "ELC": (
            "Qualcosa inizia a {start} in {box}. Indica quando finisce, che cosa succede e dove in ogni istante.",
            "A {start} comincia un evento in {box}: quando finisce, che cos'è, e in quali riquadri?",
            "Che cosa succede a partire da {start} in {box}? Indica la fine, l'evento e i riquadri.",
        ),
        "DGC": (
            "Descrivi l'immagine, con un riquadro per ogni cosa.",
            "Che cosa si vede nell'immagine, e dove?",
            "Descrivi ciò che c'è nell'immagine e indica dove si trova.",
        ),
    },
    "en": {
        "REC": (
            'Where is "{event}" in the image?',
            'Which part of the image shows "{event}"?',
            'Give the box of "{event}".',
            'Where in the image can "{event}" be seen?',
        ),
        "REG": (
            "What is in {box}?",
            "Describe what can be seen in {box}.",
            "What does the box {box} show?",
        ),
        "TVG": (
            'When does "{event}" happen in the video?',
            'In which span of the video can "{event}" be seen?',
            'Give the start and the end of "{event}".',
        ),
        "TR": (
            "What happens in {span}?",
            "Describe what can be seen during {span}.",
            "What does the video show in {span}?",
        ),
        "STVG": (
            'When and where can "{event}" be seen? Give the span, and then a box for each moment.',
            'Say when "{event}" happens and where it is at each moment.',
            'In which span can "{event}" be seen, and in which boxes?',
        ),
        "SVG": (
            'Where is "{event}" in {span}? Give a box for each moment.',
            'In the span {span}, say where "{event}" can be seen at each moment.',
            'In which boxes can "{event}" be seen during {span}?',
        ),
        "ELC": (
            "Something starts at {start} in {box}. Say when it ends, what happens and where at each moment.",
            "At {start} an event begins in {box}: when does it end, what is it, and in which boxes?",
            "What happens from {start} on in {box}? Give the end, the event and the boxes.",
        ),
        "DGC": (
            "Describe the image, with a box for each thing.",
            "What can be seen in the image, and where?",
            "Describe what is in the image and say where it is.",
        ),
    },
}  # fmt: skip
AND: Mapping[str, str] = {"it": "e", "en": "and"}
"""Between the last two things of an image."""
