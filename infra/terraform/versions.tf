terraform {
  required_version = ">= 1.9, < 2.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0" # exact: what `terraform validate` was run with
    }
  }

  # State holds names and keys of everything made here. Name a bucket of its own for it, versioned and encrypted:
  #   terraform init -backend-config=bucket=... -backend-config=key=dermaflow -backend-config=region=...
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = local.tags
  }
}
