"""Other people's files: Hugging Face's, MindSpore's and MindFormers', llama.cpp's, PyTorch's pickles.

Each is read as a mapping of names to tensors, or as a file of tensors, of which any box can be asked for; what is
written for others is here, too.
"""
