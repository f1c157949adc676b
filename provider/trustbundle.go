// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

// maxTrustBundles bounds the bundles of one signer that are read.
const maxTrustBundles = 500

// trustBundle projects a ClusterTrustBundle, or all of a signer that the labels select, to one
// file: each certificate once, in an order that changes only with them.
// https://kubernetes.io/docs/concepts/storage/projected-volumes/#clustertrustbundle
func (b *contentBuilder) trustBundle(ctx context.Context, t *corev1.ClusterTrustBundleProjection, mode uint32) error {
	optional := t.Optional != nil && *t.Optional
	var bundles []string
	switch {
	case t.Name != nil:
		bundle, err := b.objects.trustBundle(ctx, *t.Name)
		if err != nil && (!optional || !apierrors.IsNotFound(err)) {
			return err
		}
		if err == nil {
			bundles = append(bundles, bundle)
		}
	case t.SignerName != nil:
		var err error
		if bundles, err = b.objects.trustBundles(ctx, *t.SignerName, t.LabelSelector); err != nil {
			return err
		}
		if len(bundles) == 0 && !optional {
			return fmt.Errorf("combination of signerName %q and labelSelector matched no ClusterTrustBundle", *t.SignerName)
		}
	default:
		return errors.New("clusterTrustBundle has neither name nor signerName")
	}
	b.put(t.Path, anchors(bundles), mode)
	return nil
}

// anchors are the certificates of all bundles, each once.
func anchors(bundles []string) []byte {
	var all [][]byte
	for _, text := range bundles {
		for rest := []byte(text); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type == "CERTIFICATE" {
				all = append(all, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
			}
		}
	}
	slices.SortFunc(all, bytes.Compare)
	return bytes.Join(slices.CompactFunc(all, bytes.Equal), nil)
}

// trustBundle is the content of a bundle. Not found is apierrors.IsNotFound, also when the API
// server does not serve bundles at all.
func (o *objects) trustBundle(ctx context.Context, name string) (string, error) {
	v, err := o.get(ctx, objectKey{"clustertrustbundle", "", name}, func(ctx context.Context) (any, error) {
		got, err := o.client.CertificatesV1().ClusterTrustBundles().Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return got.Spec.TrustBundle, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
		// Before Kubernetes 1.37 the beta is what there is, where it is switched on.
		old, err := o.client.CertificatesV1beta1().ClusterTrustBundles().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		return old.Spec.TrustBundle, nil
	})
	if err != nil {
		return "", fmt.Errorf("get clustertrustbundle %q: %w", name, err)
	}
	return v.(string), nil
}

// trustBundles are the contents of a signer's bundles that the labels select: none select
// nothing, empty ones all.
func (o *objects) trustBundles(ctx context.Context, signer string, selector *metav1.LabelSelector) ([]string, error) {
	chosen, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return nil, fmt.Errorf("clusterTrustBundle.labelSelector: %w", err)
	}
	if chosen.String() == labels.Nothing().String() && selector == nil {
		return nil, nil
	}
	list := metav1.ListOptions{
		LabelSelector: chosen.String(), FieldSelector: fields.OneTermEqualSelector("spec.signerName", signer).String(), Limit: maxTrustBundles,
	}
	v, err := o.get(ctx, objectKey{"clustertrustbundles", signer, chosen.String()}, func(ctx context.Context) (any, error) {
		got, err := o.client.CertificatesV1().ClusterTrustBundles().List(ctx, list)
		if err == nil {
			return bundlesOf(got.Items, signer, func(b *certificatesv1.ClusterTrustBundle) (string, string) {
				return b.Spec.SignerName, b.Spec.TrustBundle
			}), nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
		old, err := o.client.CertificatesV1beta1().ClusterTrustBundles().List(ctx, list)
		if err != nil {
			return nil, err
		}
		return bundlesOf(old.Items, signer, func(b *certificatesv1beta1.ClusterTrustBundle) (string, string) {
			return b.Spec.SignerName, b.Spec.TrustBundle
		}), nil
	})
	if err != nil {
		return nil, fmt.Errorf("list clustertrustbundles of signer %q: %w", signer, err)
	}
	return v.([]string), nil
}

func bundlesOf[T any](items []T, signer string, read func(*T) (string, string)) []string {
	var out []string
	for i := range items {
		if name, bundle := read(&items[i]); name == signer {
			out = append(out, bundle)
		}
	}
	return out
}
