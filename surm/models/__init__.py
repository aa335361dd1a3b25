"""Models that adapters attach to, and the way published weights get into them.

catalogue   the architectures, one entry each: classes, presets, names and fields in the files of Hugging Face
weights     opens weights by name: what ships with the package, local files, the Hugging Face hub
convert     puts published weights into our models, by one table of names for each publisher
hf_config   reads the shape of a model from a config.json

vit and bert are models. The other files are parts that models share, or read files of one kind.
"""
