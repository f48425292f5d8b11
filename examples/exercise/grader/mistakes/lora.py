"""Part 9: what often goes wrong with a LoRA's output and its merged weight."""

from exercise.grader.table import mistakes

LINEAR, KEY = '`001`, "LoRA in Linear Layers"; arXiv 2106.09685, 4.1', '`001`, "Key Idea: Decompose the weight update"'
GRADIENT = "what A, B and the layers before would learn"
SCALES = """
alpha / r forgotten
    frozen + update
    ? What happens to the update if the rank is doubled? Its size should hardly change.

alpha not divided by the rank
    frozen + alpha * update
    ? What happens to the update if the rank is doubled? Its size should hardly change.

divided by the rank, and alpha forgotten
    frozen + update / r
    ? By which number can the update be made larger or smaller?

r / alpha, upside down
    frozen + r / alpha * update
    ? What happens to the update if the rank is doubled? Its size should hardly change.

alpha multiplied by the rank, where one divides
    frozen + alpha * r * update
    ? What happens to the update if the rank is doubled? Its size should hardly change.

alpha divided by the root of the rank
    frozen + alpha / r**0.5 * update
    ? That is another paper's scale. Is there a root in this part's formula?

alpha / r squared, or its root
    frozen + (alpha / r) ** 2 * update
    frozen + (alpha / r) ** 0.5 * update
    ? How often does the factor multiply the update?

alpha divided by d_out, which is not the rank
    frozen + alpha / len(up) * update
    ? What is r? The inner dimension of B A.

alpha divided by d_in, which is not the rank
    frozen + alpha / down.shape[1] * update
    ? What is r? The inner dimension of B A.

alpha / r on the frozen layer as well, or only there
    alpha / r * (frozen + update)
    alpha / r * frozen + update
    alpha * (frozen + update) / r
    ? Should the frozen layer's part depend on alpha?

the update taken away, not added
    frozen - alpha / r * update
    ? Which sign does the update have in the formula?

a mixture of layer and update, where a sum belongs
    (1 - alpha / r) * frozen + alpha / r * update
    (1 - alpha) * frozen + alpha * update
    ? Should the frozen layer's part depend on alpha?

the update multiplied with the layer, where it is added
    frozen * (1 + alpha / r * update)
    frozen * alpha / r * update
    ? Which operation is between the two terms of the formula?

the update left out
    frozen
    ? What would be learned?
"""
FORWARD, GIVEN = "x, weight, down, up, alpha", "r, frozen, update = len(down), x @ weight.mT, x @ down.mT @ up.mT\n"
LORA_FORWARD = mistakes(FORWARD, GIVEN, SCALES) + mistakes(
    FORWARD,
    GIVEN,
    """
    the frozen layer's own answer left out
        alpha / r * update
        update
        ? Does a LoRA replace the layer, or is it added to it?

    right as numbers, but A and B would learn nothing
        frozen + alpha / r * (x @ down.detach().mT @ up.detach().mT)
        frozen + alpha / r * update.detach()
        (frozen + alpha / r * update).detach()
        frozen + alpha / r * (x @ down.detach().mT @ up.mT)
        frozen + alpha / r * (x @ down.mT @ up.detach().mT)
        ? Which numbers does an optimizer of a LoRA change, and what does it need for that?

    right as numbers, but the layers before would learn nothing
        x.detach() @ weight.mT + alpha / r * (x.detach() @ down.mT @ up.mT)
        x @ weight.mT + alpha / r * (x.detach() @ down.mT @ up.mT)
        x.detach() @ weight.mT + alpha / r * update
        ? Which part of the model is frozen: the layer's numbers, or what comes in?

    B before A, or a transpose forgotten
        frozen + alpha / r * (x @ up @ down)
        frozen + alpha / r * (x @ up.mT @ down.mT)
        x @ weight + alpha / r * update
        frozen + alpha / r * (x @ down @ up)
        weight @ x + alpha / r * (up @ (down @ x))
        frozen + alpha / r * (x @ (down @ up).mT)
        ? W x is written for one column x; the code has x as rows. What does nn.Linear compute?

    a nonlinearity between A and B
        frozen + alpha / r * (x @ down.mT).relu() @ up.mT
        ? Could such an update still be merged into the weight?

    the update of the layer's output, where that of its input belongs
        frozen + alpha / r * (frozen @ down.mT @ up.mT)
        ? What does A multiply?
    """,
)
WEIGHT = "weight, down, up, alpha"
MERGED = mistakes(WEIGHT, "r, frozen, update = len(down), weight, up @ down\n", SCALES) + mistakes(
    WEIGHT,
    "r = len(down)\n",
    """
    the update alone, without the weight
        alpha / r * up @ down
        up @ down
        ? Should the merged layer compute what layer and LoRA computed together?

    A before B, or a transpose too many
        weight + alpha / r * down @ up
        weight + alpha / r * (up @ down).mT
        weight + alpha / r * down.mT @ up.mT
        weight.mT + alpha / r * down.mT @ up.mT
        (weight + alpha / r * up @ down).mT
        ? Which shape has the weight, and in which order do A and B give it?

    the numbers of A and B multiplied one by one, or added
        weight + alpha / r * up * down
        weight + alpha / r * (up + down)
        ? Which product of the two has the shape of the weight?
    """,
)
