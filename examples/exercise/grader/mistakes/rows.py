"""Part 6: what often goes wrong with a new word's rows."""

from exercise.grader.seen import AGAIN
from exercise.grader.table import mistakes

ROWS = "`002` 16; `000`, task 2, second item"
ARGUMENTS = "weight, i, n"
EXTENDED = mistakes(
    ARGUMENTS,
    "",
    """
    new rows at random
        torch.cat([weight, torch.randn(n, weight.shape[1])])
        ? What is `initializer_id` for?
    """,
    by=(AGAIN,),
) + mistakes(
    ARGUMENTS,
    """
    row, rows = weight[i : i + 1], weight[i : i + 1].expand(n, -1)
    def with_rows(new): return torch.cat([weight, new])
    """,
    """
    the new rows before the old ones
        torch.cat([rows, weight])
        ? Which rows do the old tokens' ids refer to now?

    the new rows in the middle, behind the initializer's
        torch.cat([weight[:i], rows, weight[i:]])
        torch.cat([weight[: i + 1], rows, weight[i + 1 :]])
        ? Which rows do the old tokens' ids refer to now?

    the new rows alone
        rows
        ? Where are the rows of all other tokens?

    the new rows are zero
        with_rows(torch.zeros(n, weight.shape[1]))
        ? What is `initializer_id` for?

    the new rows are one
        with_rows(torch.ones(n, weight.shape[1]))
        ? What is `initializer_id` for?

    one new row, whatever `num_vectors` says
        with_rows(row)
        ? A word may have several tokens, each with a row.

    rows from the initializer's on, where copies of it belong
        with_rows(weight[i : i + n])
        with_rows(weight[i + 1 : i + 1 + n])
        ? Whose rows are those behind the initializer's?

    the mean of all rows, where the initializer's belongs
        with_rows(weight.mean(0, keepdim=True).expand(n, -1))
        ? What is `initializer_id` for?

    another token's row: an index off by one, or at the end
        with_rows(weight[i - 1].expand(n, -1))
        with_rows(weight[i + 1].expand(n, -1))
        with_rows(weight[-1].expand(n, -1))
        with_rows(weight[0].expand(n, -1))
        with_rows(weight[:n])
        with_rows(weight[-n:])
        with_rows(weight[n].expand(n, -1))
        ? Which row has the token `initializer_id`?

    the initializer's column, where its row belongs
        with_rows(weight[:, i].expand(n, -1))
        torch.cat([weight, weight[:, i : i + 1].expand(-1, n)], dim=1)
        ? Which axis of the matrix counts the tokens?

    a row too many or too few
        with_rows(row.expand(n + 1, -1))
        with_rows(row.expand(n - 1, -1))
        ? How many rows has the matrix afterwards?

    new columns, where new rows belong
        torch.cat([weight, weight.new_zeros(len(weight), n)], dim=1)
        ? Which axis of the matrix counts the tokens?

    the last old rows overwritten
        torch.cat([weight[:-n], rows])
        ? Are the tokens that had these rows still to be used?

    nothing added
        weight
        ? How many rows has the matrix afterwards?

    the two stacked, not joined
        torch.stack([weight, rows])
        ? Which function joins along an axis that is there already?

    the whole matrix repeated
        weight.repeat(n, 1)
        weight.repeat(n + 1, 1)
        torch.cat([weight] + [weight] * n)
        ? What is copied: the matrix, or one of its rows?

    `torch.cat` of a matrix and a single vector
        torch.cat([weight, weight[i]])
        torch.cat([weight] + [weight[i]] * n)
        ? Which shape has a row that is still a matrix?

    copies whose numbers repeat, but not row by row
        with_rows(weight[i].repeat_interleave(n).reshape(n, -1))
        ? What should each of the new rows be?

    the initializer's row taken out of the old ones
        torch.cat([weight[:i], weight[i + 1 :], rows])
        ? Is the old word still to be used?

    copies divided by their number
        with_rows(rows / n)
        ? Each new row is a copy: of what, and how large?
    """,
)
