output "cluster_name" {
  description = "aws eks update-kubeconfig --name <this>"
  value       = aws_eks_cluster.main.name
}

output "registry" {
  description = "Where images are pushed; repositories are named by image below it."
  value       = "${local.account}.dkr.ecr.${var.region}.amazonaws.com/${var.name}"
}

output "buckets" {
  description = "Names of the buckets by their use."
  value       = { for key, bucket in aws_s3_bucket.all : key => bucket.bucket }
}

output "service_account_roles" {
  description = "ARN of the role of each service account of the namespace dermaflow."
  value       = { for account, role in aws_iam_role.account : account => role.arn }
}

output "people_roles" {
  description = "ARN of the role of approvers and of auditors: role_arn of a profile in ~/.aws/config, named by AWS_PROFILE."
  value       = { for role, made in aws_iam_role.person : role => made.arn }
}

output "autoscaler_role" {
  description = "ARN for the service account kube-system/cluster-autoscaler."
  value       = aws_iam_role.system["autoscaler"].arn
}

output "kubernetes_site" {
  description = "terraform output -raw kubernetes_site > ../kubernetes/overlays/prod/site.yaml"
  value       = join("---\n", [for document in local.site : yamlencode(document)])
}

output "shared_storage_class" {
  description = "terraform output -raw shared_storage_class | kubectl apply -f -"
  value = yamlencode({
    apiVersion  = "storage.k8s.io/v1"
    kind        = "StorageClass"
    metadata    = { name = "dermaflow-shared" }
    provisioner = "efs.csi.aws.com"
    parameters = {
      provisioningMode = "efs-ap"
      fileSystemId     = aws_efs_file_system.shared.id
      directoryPerms   = "700"
    }
    mountOptions = ["tls"]
  })
}

locals {
  site = concat(
    [
      {
        apiVersion = "v1"
        kind       = "ConfigMap"
        metadata   = { name = "dermaflow-endpoints", namespace = local.namespace }
        data = {
          AWS_DEFAULT_REGION = var.region
          DERMAFLOW_LEDGER   = "s3://${aws_s3_bucket.all["ledger"].bucket}/entries"
        }
      },
      {
        apiVersion = "v1"
        kind       = "ConfigMap"
        metadata   = { name = "dermaflow-buckets", namespace = local.namespace }
        data       = { for key, bucket in aws_s3_bucket.all : "${upper(key)}_BUCKET" => bucket.bucket if key != "logs" }
      },
    ],
    [
      for account, role in aws_iam_role.account : {
        apiVersion = "v1"
        kind       = "ServiceAccount"
        metadata = {
          name        = account
          namespace   = local.namespace
          annotations = { "eks.amazonaws.com/role-arn" = role.arn }
        }
      }
    ],
  )
}
