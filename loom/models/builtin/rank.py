"""Which sentences of a text say most of what the text says: an extractive summary without weights.

The method is LexRank: sentences are the nodes of a graph, their idf-modified cosine is the weight of an edge, and a
sentence is central when central sentences resemble it, which power iteration finds as it does for PageRank.
    G. Erkan, D. R. Radev: LexRank: Graph-based Lexical Centrality as Salience in Text Summarization.
    Journal of Artificial Intelligence Research 22 (2004), 457-479.
What differs: idf is counted over the sentences at hand, there being no other corpus; edges below the threshold are
dropped and the others keep their weight; a sentence without edges spreads its rank evenly; of more than MOST_NODES
sentences only those nearest to the centroid enter the graph, so that the cost is bounded. A sentence too like one
already chosen is passed over.
Nothing here depends on hashing or time: the same sentences give the same choice on every machine.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from loom.models.builtin.text import Sentence, words

MOST_NODES = 300
THRESHOLD = 0.1  # of likeness, below which two sentences are not joined (the paper's best)
DAMPING = 0.15  # share of the rank that is spread evenly (d in the paper)
TOO_ALIKE = 0.5  # of likeness, above which the second of two sentences adds too little
FEWEST_WORDS = 8  # of a sentence that can stand alone
LONGEST_QUOTE = 400  # characters of a sentence that is pleasant to quote
# Of the many languages only English has a list, as most documents have it; idf does the same for the others, less well.
_FUNCTION_WORD = re.compile(
    r"an?|the|and|or|but|nor|so|if|then|than|that|this|these|those|there|here|it|its|he|she|they|them|their|his|her|we|us"
    r"|our|you|your|i|my|me|is|are|was|were|be|been|being|am|do|does|did|has|have|had|can|could|may|might|must|shall"
    r"|should|will|would|not|no|of|in|on|at|by|for|from|to|with|without|into|as|about|also|any|all|each|every|some|such"
    r"|only|just|too|very|when|where|which|who|whose|what|how|why|while|because|up|out|over|under|s|t|see|one"
)
# A sentence that leans on the one before it, or on a label: alone it says less than it did in its place.
_LEANS = re.compile(
    r"[*_`]*(?:its?|they|them|their|those|these|he|she|otherwise|instead|also|then|therefore|so)\b|[*_`]+[a-z]|\w+:\s",
    re.IGNORECASE,
)

Vector = Mapping[str, float]


def summarise(sentences: Sequence[Sentence], wanted: int) -> list[Sentence]:
    """The `wanted` most central sentences in the order of the source; all distinct ones if there are not more."""
    return [sentences[i] for i in choose(sentences, wanted)]


def choose(sentences: Sequence[Sentence], wanted: int) -> list[int]:
    """The indices of the summary's sentences, rising."""
    every = _distinct(sentences) if wanted > 0 else []
    if len(every) <= wanted:
        return every
    bags = {i: Counter(words(sentences[i].key)) for i in every}
    pool = _candidates(sentences, bags, wanted)
    vectors = _weighted([_content(bags[i]) for i in pool])
    if len(pool) > MOST_NODES:
        near = _nearest_to_centroid(vectors, MOST_NODES)
        pool = [pool[i] for i in near]
        vectors = [vectors[i] for i in near]
    rows = _likeness(vectors)
    ranks = _power_iteration(rows)
    return sorted(pool[i] for i in _pick(ranks, rows, wanted))


def distinct(sentences: Sequence[Sentence]) -> int:
    """How many sentences remain when repetitions are counted once."""
    return len({s.key for s in sentences})


def _distinct(sentences: Sequence[Sentence]) -> list[int]:
    """The index of the first of all sentences that are the same."""
    first: dict[str, int] = {}
    for i, sentence in enumerate(sentences):
        first.setdefault(sentence.key, i)
    return list(first.values())


def _candidates(sentences: Sequence[Sentence], bags: Mapping[int, Counter[str]], wanted: int) -> list[int]:
    """The sentences of the best grades that together are enough, in order."""
    grades = {i: _grade(sentences[i], bag.total()) for i, bag in bags.items()}
    pool: list[int] = []
    for worst in range(3):
        pool = [i for i, grade in grades.items() if grade <= worst]
        if len(pool) >= wanted:
            break
    return pool


def _grade(sentence: Sentence, count: int) -> int:
    """0 for a full sentence that can stand alone, 1 for a line that says something, 2 for a scrap."""
    if not sentence.whole:
        return 2
    if sentence.ended and count >= FEWEST_WORDS and len(sentence.text) <= LONGEST_QUOTE:
        return 1 if _LEANS.match(sentence.text) else 0
    return 1 if count >= 3 and not sentence.text.endswith((":", "：")) else 2


def _content(bag: Counter[str]) -> Counter[str]:
    """Without the words that say nothing; all of them where there are no others."""
    kept = Counter({word: count for word, count in bag.items() if not _FUNCTION_WORD.fullmatch(word)})
    return kept or bag


def _weighted(bags: Sequence[Counter[str]]) -> list[Vector]:
    """tf * idf vectors of length 1, so that the idf-modified cosine is their inner product."""
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
    alone = [i for i, row in enumerate(edges) if not row]
    for _ in range(100):
        # What a sentence like no other holds is spread evenly; kept to itself, it would outrank half of the text.
        even = (DAMPING + (1 - DAMPING) * math.fsum(ranks[i] for i in alone)) / count
        moved = [even + (1 - DAMPING) * math.fsum(x / totals[j] * ranks[j] for j, x in row) for row in edges]
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
