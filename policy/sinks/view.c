#include "policy/sinks/view.h"

void sinks_view_init(struct sinks_view *view, const struct geometry *g)
{
	/* A third of a shallow model's layers: there they make up most of the work. */
	const uint32_t third = (g->n_layers + 2) / 3;

	*view = (struct sinks_view){
		.n_planes = g->n_planes, .n_layers = third < SINKS_LAYERS_MAX ? third : SINKS_LAYERS_MAX};
	for (uint32_t i = 0; i < view->n_layers; i++)
		view->layers[i] = (i + 1) * g->n_layers / view->n_layers - 1;
	for (uint32_t i = 0; i < g->n_planes; i++) {
		const struct plane *p = &g->planes[i];

		view->n_heads[i] = p->n_heads;
		view->n_groups[i] = p->n_heads < SINKS_GROUPS_MAX ? p->n_heads : SINKS_GROUPS_MAX;
		view->width[i] = (uint32_t)plane_width(p);
		view->first[i] = view->per_layer;
		view->per_layer += view->n_groups[i] * SINKS_SIGNALS;
	}
	view->n_features = view->per_layer * view->n_layers;
}

uint32_t sinks_feature(const struct sinks_view *view, uint32_t layer_index, uint32_t plane, uint32_t group,
	enum sinks_signal signal)
{
	return layer_index * view->per_layer + view->first[plane] + group * SINKS_SIGNALS + signal;
}

struct sinks_place sinks_place(const struct sinks_view *view, uint32_t feature)
{
	const uint32_t in_layer = feature % view->per_layer;
	const uint32_t plane = view->n_planes > 1 && in_layer >= view->first[1];
	const uint32_t in_plane = in_layer - view->first[plane];

	return (struct sinks_place){.layer = view->layers[feature / view->per_layer],
		.plane = plane,
		.group = in_plane / SINKS_SIGNALS,
		.signal = (enum sinks_signal)(in_plane % SINKS_SIGNALS)};
}
