"""Part 4: what often goes wrong with attention."""

from exercise.grader.table import mistakes

KEY = '`002` 1.3, "Key equation"'
ATTENTION = mistakes(
    "q, k, v",
    """
    d, scores = q.shape[-1], q @ k.mT
    right = scores / d**0.5
    """,
    """
    the scores not divided by the root of d
        scores.softmax(-1) @ v
        ? What variance has a sum of d products of standard normal numbers?

    the scores divided by d, where its root belongs
        (scores / d).softmax(-1) @ v
        ? A sum of d products has variance d; what is its standard deviation?

    the scores multiplied by the root of d, where one divides
        (scores * d**0.5).softmax(-1) @ v
        ? A sum of d products is large. What would make it smaller?

    the scores divided by the root of another number than d
        (scores / k.shape[-2] ** 0.5).softmax(-1) @ v
        (scores / q.shape[-2] ** 0.5).softmax(-1) @ v
        (scores / (d * q.shape[1]) ** 0.5).softmax(-1) @ v
        (scores / q.shape[1] ** 0.5).softmax(-1) @ v
        (scores / len(q) ** 0.5).softmax(-1) @ v
        (scores / (d / q.shape[1]) ** 0.5).softmax(-1) @ v
        ? d is the length of one query of one head: which axis is that?

    the weights scaled after the softmax, where the scores belong before it
        scores.softmax(-1) / d**0.5 @ v
        right.softmax(-1) / d**0.5 @ v
        scores.softmax(-1) * d**0.5 @ v
        ? What do a query's weights sum to now?

    no softmax: the scores themselves as weights
        right @ v
        scores @ v
        scores / d @ v
        ? Can a weight be negative? What should the weights of a query sum to?

    the scores divided by their sum, without an exponential
        right / right.sum(-1, keepdim=True) @ v
        ? Which function makes all weights positive, before they are divided by their sum?

    an exponential, and the division by the sum forgotten
        right.exp() @ v
        scores.exp() @ v
        ? What should the weights of a query sum to?

    a sigmoid, where a softmax belongs
        right.sigmoid() @ v
        ? What should the weights of a query sum to?

    the logarithm of the weights
        right.log_softmax(-1) @ v
        ? Can a weight be negative?

    softmax over the queries
        right.softmax(-2) @ v
        scores.softmax(-2) @ v
        ? Over what should a query's weights sum to 1? Check your sums over the last axis.

    softmax over the heads
        right.softmax(1) @ v
        scores.softmax(1) @ v
        ? Heads are independent; over what do the weights of each sum to 1?
        @ `002` 1.4

    softmax over the batch
        right.softmax(0) @ v
        ? Over what should a query's weights sum to 1?

    softmax over queries and tokens together
        right.flatten(2).softmax(-1).view(right.shape) @ v
        ? Does each query have weights of its own?

    softmax twice
        right.softmax(-1).softmax(-1) @ v
        ? The weights sum to 1 already after the first; what does the second do to them?

    queries and keys exchanged, or one of them used twice
        (k @ q.mT / d**0.5).softmax(-1) @ v
        (q @ q.mT / d**0.5).softmax(-1) @ v
        (k @ k.mT / d**0.5).softmax(-1) @ v
        ? The result has a row for each query: which of the two axes of the scores is the queries'?

    the transpose forgotten
        (q @ k / d**0.5).softmax(-1) @ v
        ? Which axis of q and of k has to be summed over?

    the whole tensor transposed, where only the last two axes belong
        (q @ k.T / d**0.5).softmax(-1) @ v
        ? Which axes does `.T` exchange of a tensor that has four?

    the transpose of another axis
        (q @ k.transpose(1, 2) / d**0.5).softmax(-1) @ v
        (q @ k.transpose(1, 3) / d**0.5).softmax(-1) @ v
        ? q has (..., n, d): which shape has k to have, so that the product is (..., n, m)?

    the keys in place of the values
        right.softmax(-1) @ k
        ? What do the weights weigh?

    the weights themselves returned
        right.softmax(-1)
        ? Which shape should the result have, and where are the values?

    the heads averaged, or only the first of them used
        right.softmax(-1).mean(1, keepdim=True) @ v
        right.mean(1, keepdim=True).softmax(-1) @ v
        (right.softmax(-1) @ v).mean(1, keepdim=True)
        right.softmax(-1)[:, :1] @ v
        right.softmax(-1)[:, :1] @ v[:, :1]
        (right.softmax(-1) @ v).mean(1)
        right.softmax(-1)[:, 0] @ v[:, 0]
        ? Heads are independent; how many are there in the result?
        @ `002` 1.4

    the values in front of the weights
        v @ right.softmax(-1)
        ? The result has a row for each query. Which of the two has these rows?

    the values in the scores, where the keys belong
        (q @ v.mT / d**0.5).softmax(-1) @ v
        (q @ v.mT / d**0.5).softmax(-1) @ k
        ? Which of them say what is looked for, and which say what is found?

    a softmax of queries or keys, where that of the scores belongs
        (q @ k.softmax(-1).mT / d**0.5) @ v
        (q.softmax(-1) @ k.mT / d**0.5) @ v
        ? Of which numbers is the softmax?

    the queries added to the result
        q + right.softmax(-1) @ v
        v + right.softmax(-1) @ v
        ? What is around attention in a network, and what is attention itself?

    the weights divided by d after the softmax
        scores.softmax(-1) / d @ v
        ? What do a query's weights sum to now?

    only the token with the largest score
        F.one_hot(right.argmax(-1), k.shape[-2]).float() @ v
        ? Is a softmax a maximum?

    queries and keys scaled to length one
        (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1) @ v
        (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT / d**0.5).softmax(-1) @ v
        ? What does the formula divide by, and does it depend on the numbers in q and k?

    tokens behind a query masked
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
        ? Are the prompt's tokens later or earlier than a position of the image?

    the sign of the scores the other way round
        (-right).softmax(-1) @ v
        ? Should a key that is like the query get more weight or less?
    """,
)
