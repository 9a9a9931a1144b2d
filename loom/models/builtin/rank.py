"""Which sentences of a text say most of what the text says: an extractive summary without weights.

The method is LexRank: sentences are the nodes of a graph, their idf-modified cosine is the weight of an edge, and a
sentence is central when central sentences resemble it, which power iteration finds as it does for PageRank.
    G. Erkan, D. R. Radev: LexRank: Graph-based Lexical Centrality as Salience in Text Summarization.
    Journal of Artificial Intelligence Research 22 (2004), 457-479: equations 1 (likeness) and 5 (continuous LexRank).
What differs: idf is counted over the sentences at hand, there being no other corpus; edges below the paper's
threshold are dropped and the others keep their weight; of more than MOST_NODES sentences only those nearest to the
centroid enter the graph, so that the cost is bounded. A sentence too like one already chosen is passed over.
Nothing here depends on hashing or time: the same sentences give the same choice on every machine.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from loom.models.builtin.text import Sentence, key, words

MOST_NODES = 300
THRESHOLD = 0.1  # of likeness, below which two sentences are not joined (section 3.2 of the paper)
DAMPING = 0.15  # share of the rank that is spread evenly (d in equation 5)
TOO_ALIKE = 0.5  # of likeness, above which the second of two sentences adds too little
FEWEST_WORDS = 5
LONGEST_QUOTE = 400  # characters of a sentence that is pleasant to quote

Vector = Mapping[str, float]


def summarise(sentences: Sequence[Sentence], wanted: int) -> list[Sentence]:
    """The `wanted` most central sentences in the order of the source; all distinct ones if there are not more."""
    return [sentences[i] for i in choose(sentences, wanted)]


def choose(sentences: Sequence[Sentence], wanted: int) -> list[int]:
    """The indices of the summary's sentences, rising."""
    pool = _candidates(sentences, wanted)
    if len(pool) <= wanted:
        return pool
    bags = [Counter(words(sentences[i].text)) for i in pool]
    vectors = _weighted(bags)
    if len(pool) > MOST_NODES:
        near = _nearest_to_centroid(vectors, MOST_NODES)
        pool = [pool[i] for i in near]
        vectors = [vectors[i] for i in near]
    rows = _likeness(vectors)
    ranks = _power_iteration(rows)
    return sorted(pool[i] for i in _pick(ranks, rows, wanted))


def distinct(sentences: Sequence[Sentence]) -> int:
    """How many sentences remain when repetitions are counted once."""
    return len({key(s.text) for s in sentences})


def _candidates(sentences: Sequence[Sentence], wanted: int) -> list[int]:
    """The best grade of sentences of which there are enough, each distinct one once, in order."""
    grades: dict[int, int] = {}
    seen: set[str] = set()
    for i, sentence in enumerate(sentences):
        same = key(sentence.text)
        if same not in seen:
            seen.add(same)
            grades[i] = _grade(sentence)
    pool: list[int] = []
    for worst in range(3):
        pool = [i for i, grade in grades.items() if grade <= worst]
        if len(pool) >= wanted:
            break
    return pool


def _grade(sentence: Sentence) -> int:
    """0 for a full sentence that can stand alone, 1 for a line that says something, 2 for a scrap."""
    if not sentence.whole:
        return 2
    count = len(words(sentence.text))
    if sentence.ended and count >= FEWEST_WORDS and len(sentence.text) <= LONGEST_QUOTE:
        return 0
    return 1 if count >= 3 and not sentence.text.endswith((":", "：")) else 2


def _weighted(bags: Sequence[Counter[str]]) -> list[Vector]:
    """tf * idf vectors of length 1, so that the cosine of equation 1 is their inner product."""
    occurs = Counter(word for bag in bags for word in bag)
    idf = {word: math.log((len(bags) + 1) / count) for word, count in occurs.items()}
    vectors: list[Vector] = []
    for bag in bags:
        vector = {word: count * idf[word] for word, count in bag.items()}
        norm = math.sqrt(math.fsum(x * x for x in vector.values()))
        vectors.append({word: x / norm for word, x in vector.items()} if norm else vector)
    return vectors


def _nearest_to_centroid(vectors: Sequence[Vector], count: int) -> list[int]:
    """The indices of the `count` vectors most like the sum of all, rising."""
    centroid: defaultdict[str, float] = defaultdict(float)
    for vector in vectors:
        for word, x in vector.items():
            centroid[word] += x
    scores = [math.fsum(x * centroid[word] for word, x in vector.items()) for vector in vectors]
    best = sorted(range(len(vectors)), key=lambda i: (-round(scores[i], 9), i))
    return sorted(best[:count])


def _likeness(vectors: Sequence[Vector]) -> list[dict[int, float]]:
    """Row i: every sentence that shares a word with i, and how like it is."""
    postings: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    rows: list[dict[int, float]] = []
    for i, vector in enumerate(vectors):
        row: defaultdict[int, float] = defaultdict(float)
        for word, x in vector.items():
            for j, y in postings[word]:
                row[j] += x * y
            postings[word].append((i, x))
        rows.append({})
        for j, alike in row.items():
            rows[i][j] = rows[j][i] = alike
    return rows


def _power_iteration(rows: Sequence[Mapping[int, float]]) -> list[float]:
    """The stationary distribution of the walk over the graph, rounded so that ties are ties."""
    count = len(rows)
    edges = [[(j, x) for j, x in row.items() if x >= THRESHOLD] for row in rows]
    totals = [math.fsum(x for _, x in row) for row in edges]
    ranks = [1 / count] * count
    for _ in range(100):
        # A node without edges keeps its share to itself: it is joined to itself alone, as in the paper.
        moved = [
            DAMPING / count + (1 - DAMPING) * (math.fsum(x / totals[j] * ranks[j] for j, x in row) if row else ranks[i])
            for i, row in enumerate(edges)
        ]
        change = max(abs(a - b) for a, b in zip(moved, ranks, strict=True))
        ranks = moved
        if change < 1e-7:
            break
    return [round(rank, 9) for rank in ranks]


def _pick(ranks: Sequence[float], rows: Sequence[Mapping[int, float]], wanted: int) -> list[int]:
    """The best ranks, without two that say the same; the passed-over ones fill up what is then missing."""
    order = sorted(range(len(ranks)), key=lambda i: (-ranks[i], i))
    chosen: list[int] = []
    passed_over: list[int] = []
    for i in order:
        if len(chosen) == wanted:
            break
        alike = any(rows[i].get(j, 0.0) > TOO_ALIKE for j in chosen)
        (passed_over if alike else chosen).append(i)
    return chosen + passed_over[: wanted - len(chosen)]
