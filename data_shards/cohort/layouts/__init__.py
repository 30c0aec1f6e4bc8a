"""The file layouts a cohort can be written in, by the name of the data set they copy."""
