// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// objectTTL is how long a Secret or ConfigMap is believed without asking again: long
// enough for the containers of one pod, or of a Deployment's pods that start
// together, to share one request; short enough that nobody waits for a change.
const objectTTL = 5 * time.Second

// requestTimeout bounds each request to the API server.
const requestTimeout = 30 * time.Second

// objects fetches Secrets and ConfigMaps one by one, for the pods of this node only,
// which is all that the Node authorizer lets a node do.
type objects struct {
	client kubernetes.Interface

	mu    sync.Mutex
	cache map[objectKey]*cachedObject // guarded by mu
}

type objectKey struct{ kind, namespace, name string }

type cachedObject struct {
	once  chan struct{} // closed when the fetch has ended
	value any
	err   error
	at    time.Time
}

func newObjects(client kubernetes.Interface) *objects {
	return &objects{client: client, cache: map[objectKey]*cachedObject{}}
}

// configMap returns a ConfigMap; the caller must not change it. Not found is apierrors.IsNotFound.
func (o *objects) configMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	v, err := o.get(ctx, objectKey{"configmap", namespace, name}, func(ctx context.Context) (any, error) {
		return o.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("get configmap %q: %w", namespace+"/"+name, err)
	}
	return v.(*corev1.ConfigMap), nil
}

// secret returns a Secret; the caller must not change it.
func (o *objects) secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	v, err := o.get(ctx, objectKey{"secret", namespace, name}, func(ctx context.Context) (any, error) {
		return o.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("get secret %q: %w", namespace+"/"+name, err)
	}
	return v.(*corev1.Secret), nil
}

// get returns what is cached, waits for a fetch under way, or fetches.
func (o *objects) get(ctx context.Context, key objectKey, fetch func(context.Context) (any, error)) (any, error) {
	o.mu.Lock()
	now := time.Now()
	for k, c := range o.cache {
		if !c.at.IsZero() && now.Sub(c.at) > objectTTL {
			delete(o.cache, k)
		}
	}
	c, ok := o.cache[key]
	if !ok {
		c = &cachedObject{once: make(chan struct{})}
		o.cache[key] = c
	}
	o.mu.Unlock()
	if ok {
		select {
		case <-c.once:
			if c.err == nil {
				return c.value, nil
			}
			// Another pod's failure, or cancellation, is no answer for this one.
			ctx, cancel := context.WithTimeout(ctx, requestTimeout)
			defer cancel()
			return fetch(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	fctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	value, err := fetch(fctx)
	o.mu.Lock()
	c.value, c.err, c.at = value, err, time.Now()
	if err != nil {
		delete(o.cache, key)
	}
	o.mu.Unlock()
	close(c.once)
	return value, err
}

// token asks for a service account token that is valid as long as the pod exists.
func (o *objects) token(ctx context.Context, pod *corev1.Pod, audience string, expiration int64) (*authenticationv1.TokenRequestStatus, error) {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &expiration,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	got, err := o.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("request token of service account %q: %w", pod.Namespace+"/"+account, err)
	}
	return &got.Status, nil
}

// optionalMissing: the object is absent and the reference says that this is fine.
func optionalMissing(err error, optional *bool) bool {
	return optional != nil && *optional && apierrors.IsNotFound(err)
}
