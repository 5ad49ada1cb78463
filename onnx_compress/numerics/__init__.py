"""The mathematics that several passes share; arrays in, arrays out."""
