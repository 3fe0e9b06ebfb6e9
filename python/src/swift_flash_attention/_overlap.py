"""Whether memory is shared."""


def overlaps_itself(shape, strides):
    """Whether elements of a tensor may share memory."""
    reach = 1
    for stride, extent in sorted((abs(stride), extent) for stride, extent in zip(strides, shape) if extent > 1):
        if stride < reach:
            return True
        reach += stride * (extent - 1)
    return False
