data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  namespace = "dermaflow" # of infra/kubernetes
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition

  tags = {
    project = "dermaflow"
    name    = var.name
  }
}
