// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

const (
	ledgers   = "nodeledgers"
	templates = "snapshottemplates"
)

// API is what a node asks of the API server about ledgers and templates: to get, list,
// watch and create nodeledgers, update nodeledgers/status, get, list and watch
// snapshottemplates, and get its own node. *Client implements it.
type API interface {
	// Ledger lists and watches the ledger of a node.
	Ledger(node string) cache.ListerWatcher
	// Templates lists and watches all templates.
	Templates() cache.ListerWatcher
	// GetLedger, CreateLedger and UpdateLedgerStatus return what the API server has
	// afterwards. Errors are those of apimachinery: apierrors.IsConflict and so on.
	GetLedger(ctx context.Context, node string) (*v1alpha1.NodeLedger, error)
	CreateLedger(ctx context.Context, l *v1alpha1.NodeLedger) (*v1alpha1.NodeLedger, error)
	UpdateLedgerStatus(ctx context.Context, l *v1alpha1.NodeLedger) (*v1alpha1.NodeLedger, error)
	// NodeUID is the UID of the Node, which owns the ledger.
	NodeUID(ctx context.Context, node string) (types.UID, error)
}

// Client is the API server. Safe for concurrent use.
type Client struct {
	rest *rest.RESTClient
	kube kubernetes.Interface
}

var _ API = (*Client)(nil)

// NewClient makes a client of the API group from a node's configuration. It asks nobody.
func NewClient(config *rest.Config, kube kubernetes.Interface) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("know the API %s: %w", v1alpha1.GroupVersion, err)
	}
	c := rest.CopyConfig(config)
	gv := v1alpha1.GroupVersion
	c.GroupVersion, c.APIPath = &gv, "/apis"
	c.ContentType, c.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON // custom resources have no other
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make client of the API %s: %w", gv, err)
	}
	return &Client{rest: client, kube: kube}, nil
}

// Ledger is part of API.
func (c *Client) Ledger(node string) cache.ListerWatcher {
	return cache.NewListWatchFromClient(c.rest, ledgers, "", fields.OneTermEqualSelector(metav1.ObjectNameField, node))
}

// Templates is part of API.
func (c *Client) Templates() cache.ListerWatcher {
	return cache.NewListWatchFromClient(c.rest, templates, "", fields.Everything())
}

// GetLedger is part of API.
func (c *Client) GetLedger(ctx context.Context, node string) (*v1alpha1.NodeLedger, error) {
	out := &v1alpha1.NodeLedger{}
	return out, c.rest.Get().Resource(ledgers).Name(node).Do(ctx).Into(out)
}

// CreateLedger is part of API.
func (c *Client) CreateLedger(ctx context.Context, l *v1alpha1.NodeLedger) (*v1alpha1.NodeLedger, error) {
	out := &v1alpha1.NodeLedger{}
	return out, c.rest.Post().Resource(ledgers).Body(l).Do(ctx).Into(out)
}

// UpdateLedgerStatus is part of API.
func (c *Client) UpdateLedgerStatus(ctx context.Context, l *v1alpha1.NodeLedger) (*v1alpha1.NodeLedger, error) {
	out := &v1alpha1.NodeLedger{}
	return out, c.rest.Put().Resource(ledgers).Name(l.Name).SubResource("status").Body(l).Do(ctx).Into(out)
}

// NodeUID is part of API.
func (c *Client) NodeUID(ctx context.Context, node string) (types.UID, error) {
	n, err := c.kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return n.UID, nil
}
