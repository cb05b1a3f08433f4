"""Made-up esterifications, as chython gives them to the model that says which atom becomes which.

Of an acid and an alcohol, random trees of atoms with single bonds, with as many hydrogens as their valences leave, an
ester is made; its atoms stand in another order. What is right is known, up to atoms that nothing tells apart.
"""

from dataclasses import dataclass

import numpy as np

Feed = dict[str, np.ndarray]
VALENCES = {6: 4, 7: 3, 8: 2}
KINDS = (6, 6, 6, 6, 7, 8)
REACTANT, PRODUCT = 2, 3
TRUE, CLASSES = "truth", "classes"  # of each atom of the product which atom it was; alike are those of one class


@dataclass(frozen=True)
class Molecule:
    """The numbers of its atoms in the periodic system, and what each is bound to (with a double bond: once)."""

    atoms: list[int]
    bonds: list[tuple[int, int]]
    neighbors: list[int]  # hydrogens too

    def distances(self) -> np.ndarray:
        """The fewest bonds from atom to atom (Floyd and Warshall)."""
        n = len(self.atoms)
        near = np.full((n, n), n)
        np.fill_diagonal(near, 0)
        for a, b in self.bonds:
            near[a, b] = near[b, a] = 1
        for k in range(n):
            near = np.minimum(near, near[:, k : k + 1] + near[k])
        return near

    def classes(self) -> list[int]:
        """A number of each atom, the same of those that stand alike in a tree (Weisfeiler and Leman)."""
        near = self.distances()
        found = list(zip(self.atoms, self.neighbors, strict=True))
        names = [sorted(set(found)).index(each) for each in found]
        for _ in names:
            told = [(names[i], sorted(names[j] for j in np.flatnonzero(near[i] == 1))) for i in range(len(names))]
            names = [sorted(map(str, told)).index(str(each)) for each in told]
        return names


def tree(rng: np.random.Generator, size: int) -> Molecule:
    """A chain with branches that begins with a carbon, of single bonds, none between two other atoms."""
    atoms, bonds = [6], []
    bound = [1]  # to what it will be a part of
    while len(atoms) < size:
        kind = int(rng.choice(KINDS))
        free = [i for i, each in enumerate(atoms) if bound[i] < VALENCES[each] and 6 in (each, kind)]
        at = int(rng.choice(free[-4:])) if free else None
        if at is None:
            return tree(rng, size)
        bonds.append((at, len(atoms)))
        bound[at] += 1
        atoms.append(kind)
        bound.append(1)
    return Molecule(atoms, bonds, [VALENCES[each] for each in atoms])


def joined(first: Molecule, second: Molecule, bond: tuple[int, int]) -> Molecule:
    """Two molecules with a bond from an atom of the first to one of the second."""
    n = len(first.atoms)
    bonds = [*first.bonds, *((a + n, b + n) for a, b in second.bonds), (bond[0], bond[1] + n)]
    return Molecule(first.atoms + second.atoms, bonds, first.neighbors + second.neighbors)


def esterification(rng: np.random.Generator) -> tuple[Molecule, Molecule, Molecule, list[int]]:
    """An acid, an alcohol, their ester in another order, and where its atoms were in the acid and then the alcohol."""
    rest, other = tree(rng, int(rng.integers(4, 9))), tree(rng, int(rng.integers(4, 9)))
    acyl = joined(rest, Molecule([6, 8], [(0, 1)], [3, 1]), (0, 0))
    n = len(rest.atoms)
    acid = joined(acyl, Molecule([8], [], [2]), (n, 0))
    alcohol = joined(other, Molecule([8], [], [2]), (0, 0))
    ester = joined(acyl, alcohol, (n, len(other.atoms)))
    were = [*range(n + 2), *(len(acid.atoms) + i for i in range(len(alcohol.atoms)))]
    order = rng.permutation(len(were))
    now = np.argsort(order)
    moved = Molecule(
        [ester.atoms[i] for i in order],
        [(int(now[a]), int(now[b])) for a, b in ester.bonds],
        [ester.neighbors[i] for i in order],
    )
    return acid, alcohol, moved, [were[i] for i in order]


def encoded(molecules: list[tuple[Molecule, int]]) -> Feed:
    """What the model takes: a token for all, and for each molecule one and its atoms; nothing is between molecules."""
    atoms, neighbors, roles = [0], [0], [1]
    total = 1 + sum(1 + len(each.atoms) for each, _ in molecules)
    distances = np.zeros((total, total), np.int64)
    distances[0, 0] = 1
    for each, role in molecules:
        start, end = len(atoms), len(atoms) + 1 + len(each.atoms)
        distances[start:end, start:end] = 1
        distances[start + 1 : end, start + 1 : end] = np.minimum(each.distances(), 10) + 2
        atoms += [1, *(kind + 2 for kind in each.atoms)]
        neighbors += [0, *(count + 2 for count in each.neighbors)]
        roles += [0, *[role] * len(each.atoms)]
    found = {"atoms": [atoms], "neighbors": [neighbors], "distances": [distances], "roles": [roles]}
    return {name: np.asarray(value, np.int64) for name, value in found.items()}


def reactions(n: int = 60) -> list[Feed]:
    """Return feeds, with the truth and the classes of the reactants' atoms beside."""
    rng, found = np.random.default_rng(0), []
    for _ in range(n):
        acid, alcohol, ester, were = esterification(rng)
        feed = encoded([(acid, REACTANT), (alcohol, REACTANT), (ester, PRODUCT)])
        classes = [*acid.classes(), *(1000 + each for each in alcohol.classes())]
        found.append(feed | {TRUE: np.array(were), CLASSES: np.array(classes)})
    return found


def right_atoms(feed: Feed, attention: np.ndarray) -> np.ndarray:
    """Of each atom of the product: whether the atom of its kind that it attends to most, and that to it, was it."""
    roles, atoms = feed["roles"][0], feed["atoms"][0]
    before, after = np.flatnonzero(roles == REACTANT), np.flatnonzero(roles == PRODUCT)
    both = attention[np.ix_(after, before)] + attention[np.ix_(before, after)].T
    both = np.where(atoms[after][:, None] == atoms[before], both, -1)
    return feed[CLASSES][both.argmax(1)] == feed[CLASSES][feed[TRUE]]
