# docker buildx bake -f images/docker-bake.hcl          every image
# docker buildx bake -f images/docker-bake.hcl vllm     one of them
variable "VERSION" { default = "0.1.0" }
variable "CUDA_MAJOR" { default = "12" }
variable "REGISTRY" { default = "ghcr.io/pytest-llem" }

group "default" {
  targets = ["transformers", "vllm", "sglang", "tensorrt_llm"]
}

target "_engine" {
  args     = { VERSION = VERSION }
  platforms = ["linux/amd64"]
}

target "transformers" {
  inherits = ["_engine"]
  context  = "images/transformers"
  tags     = ["${REGISTRY}/transformers:${VERSION}-cuda${CUDA_MAJOR}"]
}

target "vllm" {
  inherits = ["_engine"]
  context  = "images/vllm"
  tags     = ["${REGISTRY}/vllm:${VERSION}-cuda${CUDA_MAJOR}"]
}

target "sglang" {
  inherits = ["_engine"]
  context  = "images/sglang"
  tags     = ["${REGISTRY}/sglang:${VERSION}-cuda${CUDA_MAJOR}"]
}

target "tensorrt_llm" {
  inherits = ["_engine"]
  context  = "images/tensorrt_llm"
  tags     = ["${REGISTRY}/tensorrt_llm:${VERSION}-cuda${CUDA_MAJOR}"]
}
