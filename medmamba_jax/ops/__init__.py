"""Operations on arrays: the selective scan and its two-dimensional, four-direction form."""
